"""Which models does scripts/parity.py train, and what tells each from the standard model?"""

from collections.abc import Sequence
from dataclasses import dataclass

from parity_page import BASELINE, alone


@dataclass(frozen=True)
class Model:
    """One model of the protocol.

    Attributes:
        name: as files and tables call it.
        changes: what tells it from the recipe's model, for ``krakenlm train --set``.
        rate_of: takes the best learning rate of this model instead of a grid of its own.
    """

    name: str
    changes: tuple[str, ...] = ()
    rate_of: str = ""


def kraken(sublayers: int, rule: str, wiring: str = "kraken") -> Model:
    """Derived from the recipe's standard model."""
    changes = (f"model.derive.sublayers={sublayers}", f"model.derive.rule={rule}")
    if wiring != "kraken":
        changes += (f"model.derive.wiring={wiring}",)
    return Model(f"{wiring} {sublayers}-way {rule}", changes)


def shared(sublayers: int) -> Model:
    """The recipe's standard model with one stream and so many branches."""
    changes = (f"model.derive.sublayers={sublayers}", "model.derive.rule=shared")
    return Model(alone(sublayers), changes)


def parted(sublayers: int, parts: int, rate_of: str = "") -> Model:
    """The same with sums that carry one of so many parts of the channels."""
    base = shared(sublayers)
    changes = (*base.changes, f"model.derive.message_parts={parts}")
    return Model(f"{base.name} message_parts {parts}", changes, rate_of)


def drawn(numbers: Sequence[int], after: int = 0) -> Model:
    """The same with an N from these numbers at each step, or at each after so many."""
    name = f"shared, N drawn from {', '.join(map(str, numbers))}"
    changes = (*shared(max(numbers)).changes, f"training.sublayers={list(numbers)}")
    if not after:
        return Model(name, changes)
    return Model(f"{name} after step {after}", (*changes, f"training.own_sublayers_steps={after}"))


def _varied(base: Model, option: str) -> Model:
    """With one option of the configuration turned on, at the learning rate found without it."""
    name, _, value = option.partition("=")
    return Model(f"{base.name}, {name} {value}", (*base.changes, f"model.{option}"), base.name)


# The options that docs/parity.md reports on are tried on these two.
_FOUR_WAY = kraken(4, "published")
_SIX_WAY_KEEP = kraken(6, "keep-width")
MODELS = (
    Model(BASELINE),
    Model("parallel", ("model.wiring=parallel",)),
    Model("ladder", ("model.wiring=ladder",)),
    Model("lagged", ("model.wiring=lagged",)),
    Model("lagged-layer", ("model.wiring=lagged-layer",)),
    *(shared(n) for n in (2, 4, 6)),
    drawn((1, 2, 4)),
    drawn((1, 2, 4), after=980),
    *(kraken(n, "published", "kraken-shared") for n in (2, 4)),
    *(kraken(n, rule) for rule in ("published", "keep-width") for n in (2, 4, 6)),
)
VARIANTS = (
    _varied(_FOUR_WAY, "conjunction_init=mean"),
    _varied(_FOUR_WAY, "output_init=own-stream"),
    _varied(_FOUR_WAY, "sum_scale=0.25"),
    # The feed-forward gives up what the conjunction adds, so that parameters are the standard's.
    _varied(_SIX_WAY_KEEP, "ffn_dim=462"),
    *(parted(n, parts, alone(n)) for n in (2, 4) for parts in (2, 4)),
)


def chosen(names: Sequence[str]) -> tuple[list[Model], list[Model]]:
    """Models and variants of these names, and what they are held to; all without a name."""
    variants = [model for model in VARIANTS if model.name in names or not names]
    needed = {BASELINE, *names, *(model.rate_of for model in variants)}
    return [model for model in MODELS if model.name in needed or not names], variants
