"""What one rank's part of some models needs on its device, before anything is made."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from krakenlm.bench.latency import Setup
from krakenlm.bench.models import Contender
from krakenlm.bench.ranks import dtype_on
from krakenlm.errors import KrakenError
from krakenlm.plan.memory import Memory, memory_of
from krakenlm.plan.trace import Pass, trace
from krakenlm.ranks.devices import device_of, name_of

_LIBRARIES = 3 * 2**28
"""Workspaces of cuBLAS, and what sums are held with."""
_NOT_ON_A_DEVICE = 2**29
"""Left to this process and to others on the same host, where that is the device."""


def memory(contender: Contender, setup: Setup, dtype: torch.dtype) -> Memory:
    """Of rank 0, which holds most.

    Args:
        contender: the model.
        setup: how it is run.
        dtype: of weights, cache and messages.
    """
    options = setup.options(contender)
    shard = options.shards(contender.config, setup.devices)[0]
    which = Pass(setup.batch_size, setup.input_len, chunks=contender.prefill_chunks)
    return memory_of(
        shard,
        dtype.itemsize,
        batch=setup.batch_size,
        positions=setup.input_len + setup.output_len,
        buffers=trace(shard, which, dtype).peak_bytes,
    )


class Room(NamedTuple):
    """What is free.

    Attributes:
        where: for people.
        free: bytes; None where the system does not say.
    """

    where: str
    free: int | None


def room_on(device: torch.device) -> Room:
    """What a device has left for one rank."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return Room(torch.cuda.get_device_name(device), free)
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        (found,) = (line for line in lines if line.startswith("MemAvailable:"))
        return Room("this host", 1024 * int(found.split()[1]) - _NOT_ON_A_DEVICE)
    except (OSError, ValueError):
        return Room("this host", None)


class Needs(NamedTuple):
    """What some models need at once.

    Attributes:
        nbytes: of memory.
        text: the same for people.
    """

    nbytes: int
    text: str


def needs(contenders: Sequence[Contender], setup: Setup, dtype: torch.dtype) -> Needs:
    """Of models that take turns on one device, each as one rank's part."""
    weights: dict[str, int] = {}  # models that differ in chunks alone share theirs
    stays = buffers = 0
    for contender in contenders:
        part = memory(contender, setup, dtype)
        weights[contender.label] = part.weights
        # Each runs with communication and without, with a cache and captured passes for both.
        stays += 2 * (part.cache + (part.buffers if setup.graph_prefill else 0))
        buffers = max(buffers, part.buffers)
    total = sum(weights.values()) + stays + buffers + _LIBRARIES
    listed = ", ".join(f"{label} {_gib(nbytes)}" for label, nbytes in weights.items())
    return Needs(
        total,
        f"one rank of {setup.devices} needs about {_gib(total)} GiB in {name_of(dtype)} (weights: "
        f"{listed})",
    )


def lacking(need: Needs, room: Room) -> str | None:
    """Why that does not fit, for people; None where it does, or nobody knows."""
    if room.free is None or need.nbytes <= room.free:
        return None
    return f"{need.text}, and {room.where} has {_gib(room.free)} GiB free"


def check_fits(contenders: Sequence[Contender], setup: Setup, room: Room | None = None) -> str:
    """Say what the models need at once, or refuse what does not fit.

    Args:
        contenders: the models.
        setup: how they are run.
        room: what there is; by default what the device says.

    Returns:
        One line for people.

    Raises:
        KrakenError: more than is free.
    """
    device = device_of(setup.device)
    room = room or room_on(device)
    need = needs(contenders, setup, dtype_on(device, setup.dtype))
    refusal = lacking(need, room)
    if refusal is not None:
        raise KrakenError(
            f"{refusal}: take fewer models at once, a smaller --size or more --devices"
        )
    if room.free is None:
        return need.text
    return f"{need.text} of {_gib(room.free)} free on {room.where}"


def _gib(nbytes: int) -> str:
    return f"{nbytes / 2**30:.2f}"
