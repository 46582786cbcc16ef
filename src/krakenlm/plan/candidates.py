"""Which models a plan compares: one shape in every wiring, for each number of devices."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from krakenlm.bench.models import VARIANTS, Contender, Wanted, in_wiring
from krakenlm.config import (
    WIRINGS,
    ModelConfig,
    WiringName,
    derive,
    model_config,
    rewired,
    size_names,
    with_sublayers,
)
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.model.checkpoint import read_config

KRAKENS = (*VARIANTS, "gqa", "mqa")
"""Ways to match Kraken's sub-layers to a shape: those of ``krakenlm bench``, and hardware-friendly
ones with two key and value heads a sub-layer, or one."""
KV_HEADS = {"mha": 0, "gqa": 2, "mqa": 1}
"""Key and value heads of a sub-layer; 0 is one for each query head."""
_FRIENDLY_HEAD = 64


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

    def __post_init__(self) -> None:
        for option, value in (
            ("--sublayers", self.sublayers),
            ("--tensor-parallel", self.tensor_parallel),
        ):
            if value is not None and value < 1:
                raise KrakenError(f"{option} {value}: needs 1 or more")


def read_shape(text: str) -> ModelConfig:
    """A size's name, the folder of a model, or its config.json.

    Raises:
        KrakenError: none of these.
    """
    path = Path(text)
    if text.lower() in (name.lower() for name in size_names()) or not path.exists():
        return model_config(text)
    return read_config(path.parent if path.is_file() else path)


class Candidates(NamedTuple):
    """The models for one number of devices.

    Attributes:
        models: in the order asked for.
        left_out: why others are not among them.
        missing: of these, the wirings that there is no model of at all.
    """

    models: list[Contender]
    left_out: list[str]
    missing: list[str]


def candidates(shape: ModelConfig, wish: Wish, devices: int) -> Candidates:
    """What is planned for one number of devices.

    Args:
        shape: a standard model, or another that is planned as it is and in the wirings that its
            weights fit.
        wish: what is compared.
        devices: how many.
    """
    n = wish.sublayers or max(2, devices // wish.tensor_parallel)
    models = [] if is_standard(shape) else [_as_it_is(shape, wish.sublayers)]
    left_out: list[str] = []
    missing: list[str] = []
    for wanted in wish.wirings:
        before, refused = len(models), len(left_out)
        for kind in wish.krakens if WIRINGS[wanted.wiring].own_norms else VARIANTS[:1]:
            try:
                models += _in_wiring(shape, wanted, n, kind)
            except ConfigError as error:
                left_out.append(f"{wanted.text} on {devices} devices: {error}")
        if len(models) == before:
            missing += left_out[refused : refused + 1]
    distinct = {model.label: model for model in reversed(models)}
    ordered = [distinct[label] for label in dict.fromkeys(m.label for m in models)]
    chunks = wish.prefill_chunks
    in_chunks = [replace(m, prefill_chunks=c) for m in ordered for c in chunks]
    return Candidates(in_chunks, list(dict.fromkeys(left_out)), missing)


def alone(shape: ModelConfig) -> Contender:
    """The shape on one device, where there is nothing to sum."""
    return Contender(config=shape, label=shape.wiring)


def with_kv_heads(
    shape: ModelConfig, n: int, kind: str, wiring: WiringName = "kraken", message_parts: int = 1
) -> ModelConfig:
    """Hardware-friendly sub-layers that match a standard shape, with fewer key and value heads.

    Args:
        shape: the standard shape.
        n: sub-layers.
        kind: one of ``KV_HEADS``.
        wiring: kraken or kraken-shared.
        message_parts: of the model.

    Raises:
        ConfigError: no such shape comes near enough.
    """
    friendly = shape.head_dim % _FRIENDLY_HEAD == 0
    return derive(
        shape,
        n,
        wiring=wiring,
        head_dim=shape.head_dim if friendly else _FRIENDLY_HEAD,
        kv_heads=KV_HEADS[kind],
        message_parts=message_parts,
    )


def is_standard(shape: ModelConfig) -> bool:
    """Whether any wiring may be chosen for a shape, those with weights of their own as well."""
    traits = shape.traits
    has_its_norms = not traits.depends_on_degree and traits.norms_per_layer == 2
    return has_its_norms and traits.awaited_as is None


def those_that_fit(shape: ModelConfig, wirings: Sequence[Wanted]) -> list[Wanted]:
    """Of some wirings, those that a shape may be planned in on two devices."""
    found = []
    for wanted in wirings:
        with contextlib.suppress(ConfigError):
            if not is_standard(shape):
                _rewired(shape, wanted, 2)
            found.append(wanted)
    return found


def _as_it_is(shape: ModelConfig, sublayers: int | None) -> Contender:
    config = with_sublayers(shape, sublayers) if shape.traits.degree_is_a_choice else shape
    return Contender(config=config, label=f"{shape.wiring} (as it is)")


def _in_wiring(shape: ModelConfig, wanted: Wanted, n: int, kind: str) -> list[Contender]:
    if not is_standard(shape):
        return [_rewired(shape, wanted, n)] if wanted.wiring != shape.wiring else []
    if kind not in KV_HEADS:
        return in_wiring(shape, wanted, n, [kind])
    config = with_kv_heads(shape, n, kind, wanted.wiring, wanted.message_parts)
    label = f"{wanted.wiring} ({kind.upper()} {config.hidden_size}, {config.kv_heads_per_sublayer} "
    label += f"of {config.heads_per_sublayer} KV heads)"
    return [Contender(config=config, label=label, variant=kind)]


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
