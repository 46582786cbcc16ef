"""Which models are measured against each other: a standard shape, or a saved model, in each wiring.

Wirings are named as in ``shared/2:16-29``: with sums of half of the channels, of which those of
layers 16 to 29 hide behind compute.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from krakenlm.config import (
    WIRINGS,
    ModelConfig,
    Rule,
    WiringName,
    derive,
    laid_out,
    model_config,
    rewired,
    with_sublayers,
)
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.model.checkpoint import read_config

_FRIENDLY_HEAD = 64
_IN_WORDS = {
    "published": "published width",
    "keep-width": "keep-width",
    "hardware-friendly": "hardware-friendly",
}
VARIANTS = tuple(_IN_WORDS)
"""How Kraken's sub-layers are matched to a standard shape, by name."""

# Six digits at most: int() refuses texts of thousands.
_NAMED = re.compile(r"(?P<name>[^/:]*)(?:/(?P<parts>[1-9][0-9]{0,5}))?(?::(?P<layers>[0-9+-]+))?")


class Wanted(NamedTuple):
    """A wiring as it is named on the command line.

    Attributes:
        text: what was typed.
        wiring: which architecture.
        message_parts: see ``ModelConfig``.
        late_layers: likewise; empty is all.
    """

    text: str
    wiring: WiringName
    message_parts: int = 1
    late_layers: str = ""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model in a comparison.

    Attributes:
        config: its shape.
        label: what tells it from the others.
        model: the folder that its weights come from; None is random ones.
        variant: for Kraken's sub-layers, the rule that they were derived by.
        prefill_chunks: parts that its prompts are computed in.
    """

    config: ModelConfig
    label: str
    model: Path | None = None
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
        wirings: which architectures, as ``parse_wirings`` takes them.
        variants: which Krakens match it, names of ``VARIANTS``; kraken-shared has them too.
        sublayers: N of those whose function depends on it.
        prefill_chunks: how prompts are divided.

    Raises:
        KrakenError: names that do not exist or stand twice, a shape that has no such Kraken.
    """
    chosen = parse_wirings(wirings)
    _check_names("--kraken", variants, VARIANTS)
    standard = model_config(size)
    if standard.traits.depends_on_degree:
        raise KrakenError(
            f"--size {size} is a Kraken: give the standard shape that it matches, such as 124M"
        )
    models: list[Contender] = []
    for wanted in chosen:
        try:
            models += in_wiring(standard, wanted, sublayers, variants)
        except ConfigError as error:
            raise KrakenError(f"--size {size}{_has_no(wanted, sublayers)}: {error}") from error
    labels = [model.label for model in models]
    if len(set(labels)) < len(labels):
        raise KrakenError(f"--wirings {_listed(wirings)}: two of them are the same model")
    return _in_chunks(models, prefill_chunks)


def contenders_of_model(
    directory: Path,
    wirings: Sequence[str] = (),
    *,
    sublayers: int | None = None,
    usual_sublayers: int,
    prefill_chunks: Sequence[int] = (1,),
) -> list[Contender]:
    """A saved model as it is, then its weights in other wirings, each with each number of chunks.

    Args:
        directory: the model's folder.
        wirings: which others, as ``parse_wirings`` takes them; the model's own is there already.
        sublayers: N of those that it is a choice for; None is the model's own N where it has one,
            and ``usual_sublayers`` for the others.
        usual_sublayers: see above.
        prefill_chunks: how prompts are divided.

    Raises:
        KrakenError: no such model, names that do not exist or stand twice, wirings that its weights
            do not fit.
    """
    chosen = parse_wirings(wirings) if wirings else []
    stored = read_config(directory)
    is_a_choice = stored.traits.degree_is_a_choice
    own = with_sublayers(stored, sublayers) if is_a_choice or not chosen else stored
    configs = {_label(own): own}
    for wanted in chosen:
        n = usual_sublayers if sublayers is None else sublayers
        try:
            config = _rewired(stored, wanted, n)
        except ConfigError as error:
            raise KrakenError(f"{directory}{_has_no(wanted, n)}: {error}") from error
        configs.setdefault(_label(config), config)
    models = [
        Contender(config=config, label=label, model=directory) for label, config in configs.items()
    ]
    return _in_chunks(models, prefill_chunks)


def in_wiring(
    standard: ModelConfig, wanted: Wanted, sublayers: int, variants: Sequence[str]
) -> list[Contender]:
    """A standard shape in one wiring, with one contender for each variant where it has any.

    Args:
        standard: the shape.
        wanted: the architecture.
        sublayers: as in ``contenders``.
        variants: as there.

    Raises:
        ConfigError: the shape has no such match.
    """
    traits = WIRINGS[wanted.wiring]
    if traits.own_norms:
        return [_sublayers(standard, wanted, sublayers, variant) for variant in variants]
    config = standard.replace(
        wiring=wanted.wiring, message_parts=wanted.message_parts, late_layers=wanted.late_layers
    )
    if traits.depends_on_degree:
        config = laid_out(config, sublayers)
    return [Contender(config=config, label=_label(config))]


def _sublayers(standard: ModelConfig, wanted: Wanted, sublayers: int, variant: str) -> Contender:
    rule: Rule = "keep-width" if variant == "keep-width" else "published"
    head_dim = 0
    if variant == "hardware-friendly":
        head_dim = standard.head_dim if standard.head_dim % _FRIENDLY_HEAD == 0 else _FRIENDLY_HEAD
    config = derive(
        standard,
        sublayers,
        rule=rule,
        wiring=wanted.wiring,
        head_dim=head_dim,
        message_parts=wanted.message_parts,
        late_layers=wanted.late_layers,
    )
    described = f"{_IN_WORDS[variant]} {config.hidden_size}"
    if head_dim:
        described += f", head_dim {head_dim}"
    return Contender(config=config, label=_label(config, described), variant=variant)


def _rewired(stored: ModelConfig, wanted: Wanted, sublayers: int) -> ModelConfig:
    """The weights of a model in another wiring, stored for as many branches as that has."""
    traits = WIRINGS[wanted.wiring]
    branches = sublayers if traits.depends_on_degree else 1
    return rewired(
        stored,
        wanted.wiring,
        stored.num_sublayers if traits.own_norms else branches,
        message_parts=wanted.message_parts,
        late_layers=wanted.late_layers or "all",
    )


def _label(config: ModelConfig, described: str = "") -> str:
    """A wiring with what else decides what a model computes, or what shape it was given."""
    if not described and config.traits.depends_on_degree:
        described = f"{config.num_sublayers}-way"
    parts = f"1/{config.message_parts} of the channels" if config.message_parts > 1 else ""
    late = f"layers {config.late_layers} late" if config.late_layers else ""
    said = ", ".join(filter(None, (described, parts, late)))
    return f"{config.wiring} ({said})" if said else config.wiring


def _has_no(wanted: Wanted, sublayers: int) -> str:
    of_how_many = (
        f" of {sublayers} sub-layers, one for each rank unless --sublayers says otherwise"
        if WIRINGS[wanted.wiring].depends_on_degree
        else ""
    )
    return f" has no {wanted.text}{of_how_many}"


def _in_chunks(models: Sequence[Contender], prefill_chunks: Sequence[int]) -> list[Contender]:
    if len(set(prefill_chunks)) < len(prefill_chunks):
        raise KrakenError(f"--prefill-chunks {_listed(prefill_chunks)}: give each number once")
    return [replace(model, prefill_chunks=n) for model in models for n in prefill_chunks]


def parse_wirings(texts: Sequence[str]) -> list[Wanted]:
    """What ``--wirings`` asks for.

    Args:
        texts: wirings, some of them with a number of ``message_parts`` behind a slash, and behind a
            colon ``late_layers`` with plus signs for its commas: ``shared/2:0+4-11``.

    Raises:
        KrakenError: one that does not exist or reads otherwise, or stands twice.
    """
    _check_names("--wirings", texts, list(WIRINGS), key=_name_in)
    return [_parsed(text, texts) for text in texts]


def _parsed(text: str, texts: Sequence[str]) -> Wanted:
    found = _NAMED.fullmatch(text)
    if found is None:
        name = _name_in(text)
        raise KrakenError(
            f"--wirings {_listed(texts)}: {text!r}: write {name}, or {name}/2 for AllReduces of "
            f"half of the channels, or {name}:0+4-11 for layers whose AllReduces alone hide"
        )
    return Wanted(
        text,
        found["name"],  # type: ignore[arg-type]  # one of them, as the caller has checked
        int(found["parts"] or 1),
        (found["layers"] or "").replace("+", ","),
    )


def _name_in(text: str) -> str:
    return re.split("[/:]", text)[0]


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
