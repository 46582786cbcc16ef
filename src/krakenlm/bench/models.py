"""Which models are measured against each other: a standard shape in each wiring."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from krakenlm.config import (
    WIRINGS,
    ModelConfig,
    Rule,
    WiringName,
    derive,
    laid_out,
    model_config,
)
from krakenlm.errors import ConfigError, KrakenError

_FRIENDLY_HEAD = 64
_IN_WORDS = {
    "published": "published width",
    "keep-width": "keep-width",
    "hardware-friendly": "hardware-friendly",
}
VARIANTS = tuple(_IN_WORDS)
"""How Kraken's sub-layers are matched to a standard shape, by name."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model in a comparison.

    Attributes:
        config: its shape.
        label: what tells it from the others.
        variant: for Kraken's sub-layers, the rule that they were derived by.
        prefill_chunks: parts that its prompts are computed in.
    """

    config: ModelConfig
    label: str
    variant: str | None = None
    prefill_chunks: int = 1


def contenders(
    size: str,
    wirings: Sequence[str],
    variants: Sequence[str],
    *,
    sublayers: int,
    prefill_chunks: Sequence[int] = (1,),
) -> list[Contender]:
    """A size in each wiring, each with each number of chunks.

    Args:
        size: name of a standard shape.
        wirings: which architectures; shared/2 is a shared whose sums carry half of the channels.
        variants: which Krakens match it, names of ``VARIANTS``; kraken-shared has them too.
        sublayers: N of those whose function depends on it.
        prefill_chunks: how prompts are divided.

    Raises:
        KrakenError: names that do not exist or stand twice, a shape that has no such Kraken.
    """
    chosen = parse_wirings(wirings)
    _check_names("--kraken", variants, VARIANTS)
    if len(set(prefill_chunks)) < len(prefill_chunks):
        raise KrakenError(f"--prefill-chunks {_listed(prefill_chunks)}: give each number once")
    standard = model_config(size)
    if standard.traits.depends_on_degree:
        raise KrakenError(
            f"--size {size} is a Kraken: give the standard shape that it matches, such as 124M"
        )
    models: list[Contender] = []
    for text, (wiring, parts) in zip(wirings, chosen, strict=True):
        try:
            models += in_wiring(standard, wiring, parts, sublayers, variants)
        except ConfigError as error:
            of_how_many = (
                f" of {sublayers} sub-layers, one for each rank unless --sublayers says otherwise"
                if WIRINGS[wiring].depends_on_degree
                else ""
            )
            raise KrakenError(f"--size {size} has no {text}{of_how_many}: {error}") from error
    return [replace(model, prefill_chunks=n) for model in models for n in prefill_chunks]


def in_wiring(
    standard: ModelConfig,
    wiring: WiringName,
    parts: int,
    sublayers: int,
    variants: Sequence[str],
) -> list[Contender]:
    """A standard shape in one wiring, with one contender for each variant where it has any.

    Args:
        standard: the shape.
        wiring: the architecture.
        parts: its ``message_parts``.
        sublayers: as in ``contenders``.
        variants: as there.

    Raises:
        ConfigError: the shape has no such match.
    """
    traits = WIRINGS[wiring]
    if traits.own_norms:
        return [_sublayers(standard, wiring, sublayers, parts, variant) for variant in variants]
    config = standard.replace(wiring=wiring, message_parts=parts)
    if not traits.depends_on_degree:
        return [Contender(config=config, label=wiring)]
    label = f"{wiring} ({sublayers}-way{_carried(config)})"
    return [Contender(config=laid_out(config, sublayers), label=label)]


def _sublayers(
    standard: ModelConfig, wiring: WiringName, sublayers: int, parts: int, variant: str
) -> Contender:
    rule: Rule = "keep-width" if variant == "keep-width" else "published"
    head_dim = 0
    if variant == "hardware-friendly":
        head_dim = standard.head_dim if standard.head_dim % _FRIENDLY_HEAD == 0 else _FRIENDLY_HEAD
    config = derive(
        standard, sublayers, rule=rule, wiring=wiring, head_dim=head_dim, message_parts=parts
    )
    described = f"{_IN_WORDS[variant]} {config.hidden_size}"
    if head_dim:
        described += f", head_dim {head_dim}"
    label = f"{wiring} ({described}{_carried(config)})"
    return Contender(config=config, label=label, variant=variant)


def _carried(config: ModelConfig) -> str:
    return f", 1/{config.message_parts} of the channels" if config.message_parts > 1 else ""


def parse_wirings(texts: Sequence[str]) -> list[tuple[WiringName, int]]:
    """``shared/2`` as (shared, 2): which wiring, and its ``message_parts``."""
    _check_names("--wirings", texts, list(WIRINGS), key=lambda text: text.partition("/")[0])
    chosen: list[tuple[WiringName, int]] = []
    for text in texts:
        name, slash, parts = text.partition("/")
        # Six digits at most: int() refuses texts of thousands.
        if slash and not re.fullmatch("[1-9][0-9]{0,5}", parts):
            raise KrakenError(
                f"--wirings {_listed(texts)}: {text!r}: give a number behind the slash, such as "
                f"{name}/2: each AllReduce carries half of the channels"
            )
        chosen.append((name, int(parts or 1)))  # type: ignore[arg-type]  # checked above
    return chosen


def _check_names(
    option: str,
    given: Sequence[str],
    known: Sequence[str],
    key: Callable[[str], str] = lambda name: name,
) -> None:
    for name in given:
        if key(name) not in known:
            raise KrakenError(f"{option} {_listed(given)}: {name!r} is not one of {_listed(known)}")
    if len(set(given)) < len(given) or not given:
        raise KrakenError(f"{option} {_listed(given)}: give each name once, one at least")


def _listed(items: Sequence[object]) -> str:
    return ",".join(map(str, items))
