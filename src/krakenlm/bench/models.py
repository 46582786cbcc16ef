"""Which models are measured against each other: a standard shape in each wiring."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from krakenlm.config import WIRINGS, ModelConfig, derive, model_config, rewired
from krakenlm.errors import ConfigError, KrakenError

_FRIENDLY_HEAD = 64


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A model in a comparison.

    Attributes:
        config: its shape.
        label: what tells it from the others.
        variant: for a Kraken, the rule that it was derived by.
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
        wirings: which architectures.
        variants: which Krakens match it, names of ``VARIANTS``.
        sublayers: N of those whose function depends on it.
        prefill_chunks: how prompts are divided.

    Raises:
        KrakenError: names that do not exist or stand twice, a shape that has no such Kraken.
    """
    _check_names("--wirings", wirings, list(WIRINGS))
    _check_names("--kraken", variants, list(VARIANTS))
    if len(set(prefill_chunks)) < len(prefill_chunks):
        raise KrakenError(f"--prefill-chunks {_listed(prefill_chunks)}: give each number once")
    standard = model_config(size)
    if standard.traits.depends_on_degree:
        raise KrakenError(
            f"--size {size} is a Kraken: give the standard shape that it matches, such as 124M"
        )
    models: list[Contender] = []
    for wiring in wirings:
        traits = WIRINGS[wiring]  # type: ignore[index]  # checked above
        if not traits.depends_on_degree:
            models.append(Contender(config=standard.replace(wiring=wiring), label=wiring))
            continue
        try:
            if traits.own_streams:
                models += [VARIANTS[variant](standard, sublayers) for variant in variants]
            else:
                models.append(_one_stream(standard, wiring, sublayers))
        except ConfigError as error:
            raise KrakenError(
                f"--size {size} has no {wiring} of {sublayers} sub-layers, one for each rank "
                f"unless --sublayers says otherwise: {error}"
            ) from error
    return [replace(model, prefill_chunks=n) for model in models for n in prefill_chunks]


def _one_stream(standard: ModelConfig, wiring: str, sublayers: int) -> Contender:
    config = rewired(standard, wiring, sublayers)
    return Contender(config=config, label=f"{wiring} ({sublayers}-way)")


def _published(standard: ModelConfig, sublayers: int) -> Contender:
    config = derive(standard, sublayers)
    return _kraken(config, "published", f"published width {config.hidden_size}")


def _keep_width(standard: ModelConfig, sublayers: int) -> Contender:
    config = derive(standard, sublayers, rule="keep-width")
    return _kraken(config, "keep-width", f"keep-width {config.hidden_size}")


def _hardware_friendly(standard: ModelConfig, sublayers: int) -> Contender:
    wide = standard.head_dim % _FRIENDLY_HEAD == 0
    head_dim = standard.head_dim if wide else _FRIENDLY_HEAD
    config = derive(standard, sublayers, head_dim=head_dim)
    described = f"hardware-friendly {config.hidden_size}, head_dim {config.head_dim}"
    return _kraken(config, "hardware-friendly", described)


def _kraken(config: ModelConfig, variant: str, described: str) -> Contender:
    return Contender(config=config, label=f"{config.wiring} ({described})", variant=variant)


VARIANTS: dict[str, Callable[[ModelConfig, int], Contender]] = {
    "published": _published,
    "keep-width": _keep_width,
    "hardware-friendly": _hardware_friendly,
}
"""The Krakens that match a standard shape, by name."""


def _check_names(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise KrakenError(f"{option} {_listed(given)}: {name!r} is not one of {_listed(known)}")
    if len(set(given)) < len(given) or not given:
        raise KrakenError(f"{option} {_listed(given)}: give each name once, one at least")


def _listed(items: Sequence[object]) -> str:
    return ",".join(map(str, items))
