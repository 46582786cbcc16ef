"""Which models a plan compares: one shape in every wiring, for each number of devices."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from krakenlm.bench.models import VARIANTS, Contender, Wanted, in_wiring
from krakenlm.config import (
    WIRINGS,
    ModelConfig,
    derive,
    model_config,
    rewired,
    size_names,
    with_sublayers,
)
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.model.checkpoint import read_config

KRAKENS = (*VARIANTS, "gqa", "mqa")
"""Ways to match Kraken's sub-layers to a shape: those of ``krakenlm bench``, and the published rule
with grouped queries or one key and value head a sub-layer."""
_GROUP = 4
"""Query heads that share a key head in gqa, where they divide."""


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What is asked for, beside the shape.

    Attributes:
        wirings: which, as ``bench.models.parse_wirings`` gives them.
        krakens: names of ``KRAKENS``.
        sublayers: N; None is one for each device or group of devices.
        tensor_parallel: devices in a group.
        prefill_chunks: parts of a prompt.
    """

    wirings: tuple[Wanted, ...]
    krakens: tuple[str, ...]
    sublayers: int | None = None
    tensor_parallel: int = 1
    prefill_chunks: tuple[int, ...] = (1,)


def read_shape(text: str) -> ModelConfig:
    """A size's name, the folder of a model, or its config.json.

    Raises:
        KrakenError: none of these.
    """
    path = Path(text)
    if text.lower() in (name.lower() for name in size_names()) or not path.exists():
        return model_config(text)
    return read_config(path.parent if path.is_file() else path)


def candidates(shape: ModelConfig, wish: Wish, devices: int) -> tuple[list[Contender], list[str]]:
    """The models of one number of devices, and why others are not among them.

    Args:
        shape: a standard model, or another that is planned as it is and in the wirings that its
            weights fit.
        wish: what is compared.
        devices: how many.
    """
    n = wish.sublayers or max(2, devices // wish.tensor_parallel)
    models: list[Contender] = []
    left_out: list[str] = []
    if shape != _as_standard(shape):
        models.append(_as_it_is(shape, wish.sublayers))
    for wanted in wish.wirings:
        try:
            models += _in_wiring(shape, wanted, n, wish.krakens)
        except ConfigError as error:
            left_out.append(f"{wanted.text} on {devices} devices: {error}")
    distinct = {model.label: model for model in reversed(models)}
    ordered = [distinct[label] for label in dict.fromkeys(m.label for m in models)]
    chunks = wish.prefill_chunks
    return [replace(m, prefill_chunks=c) for m in ordered for c in chunks], left_out


def alone(shape: ModelConfig) -> Contender:
    """The shape on one device, where there is nothing to sum."""
    return Contender(config=shape, label=shape.wiring)


def kv_heads(kind: str, heads: int) -> int | None:
    """Key and value heads for so many query heads; None where it would be as many, or as mqa."""
    if heads == 1:
        return None
    if kind == "mqa":
        return 1
    return heads // _GROUP if heads % _GROUP == 0 and heads > _GROUP else None


def _as_standard(shape: ModelConfig) -> ModelConfig | None:
    """The shape itself where wirings may be chosen for it, as for a standard model."""
    traits = shape.traits
    is_plain = not (traits.depends_on_degree or traits.norms_per_layer == 1)
    return shape if is_plain and traits.awaited_as is None else None


def _as_it_is(shape: ModelConfig, sublayers: int | None) -> Contender:
    config = with_sublayers(shape, sublayers) if shape.traits.degree_is_a_choice else shape
    return Contender(config=config, label=f"{shape.wiring} (as it is)")


def _in_wiring(
    shape: ModelConfig, wanted: Wanted, n: int, krakens: Sequence[str]
) -> list[Contender]:
    if _as_standard(shape) is None:
        return [_rewired(shape, wanted, n)] if wanted.wiring != shape.wiring else []
    if not WIRINGS[wanted.wiring].own_norms:
        return in_wiring(shape, wanted, n, ())
    models = in_wiring(shape, wanted, n, [k for k in krakens if k in VARIANTS])
    for kind in krakens:
        if kind not in VARIANTS and shape.num_attention_heads % n == 0:
            heads = kv_heads(kind, shape.num_attention_heads // n)
            if heads is not None:
                models.append(_with_fewer_keys(shape, wanted, n, kind, heads))
    return models


def _with_fewer_keys(
    shape: ModelConfig, wanted: Wanted, n: int, kind: str, heads: int
) -> Contender:
    config = derive(
        shape, n, wiring=wanted.wiring, kv_heads=heads, message_parts=wanted.message_parts
    )
    label = f"{wanted.wiring} ({kind.upper()} {config.hidden_size}, {heads} of "
    label += f"{config.heads_per_sublayer} KV heads)"
    return Contender(config=config, label=label, variant=kind)


def _rewired(shape: ModelConfig, wanted: Wanted, n: int) -> Contender:
    traits = WIRINGS[wanted.wiring]
    branches = n if traits.depends_on_degree and not traits.own_norms else shape.num_sublayers
    config = rewired(
        shape,
        wanted.wiring,
        branches if traits.depends_on_degree else 1,
        message_parts=wanted.message_parts,
        late_layers=wanted.late_layers or "all",
    )
    return Contender(config=config, label=wanted.text)


def check_krakens(given: Sequence[str]) -> tuple[str, ...]:
    """Names of ``KRAKENS``, each once.

    Raises:
        KrakenError: others, or one twice.
    """
    for name in given:
        if name not in KRAKENS:
            raise KrakenError(
                f"--kraken {','.join(given)}: {name!r} is not one of {', '.join(KRAKENS)}"
            )
    if len(set(given)) < len(given):
        raise KrakenError(f"--kraken {','.join(given)}: give each name once")
    return tuple(given)
