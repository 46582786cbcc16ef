"""Which ranks sum together, and what carries their messages.

Ranks of one host and network namespace exchange through shared memory; others, and those that get
none, through sockets; GPUs through NCCL, or small messages on request through symmetric memory.
``krakenlm bench allreduce`` measures the choices on a machine.
"""

import socket
import sys
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch import distributed as dist

from krakenlm.console import print_note
from krakenlm.errors import KrakenError, trying
from krakenlm.model.reduce import Pending
from krakenlm.model.shard import Shard
from krakenlm.ranks.agreement import boot, own_namespace
from krakenlm.ranks.failures import CONNECTING
from krakenlm.ranks.launch import Rank
from krakenlm.transport.collective import (
    Collective,
    Group,
    ProcessGroupReducer,
    WithoutCommunication,
    WithoutPeers,
    gather_texts,
)
from krakenlm.transport.links import EmulatedLink, LinkModel
from krakenlm.transport.shared_memory import (
    NoSharedMemoryError,
    SharedMemoryReducer,
    is_supported,
)
from krakenlm.transport.sockets import SocketReducer
from krakenlm.transport.symmetric_memory import MAX_BYTES, SymmetricMemoryReducer

Transport = Literal["auto", "shared-memory", "sockets", "process-group", "symmetric-memory"]
TRANSPORTS: tuple[Transport, ...] = get_args(Transport)

_DIRECT_BYTES = 1 << 16
"""Among more than two ranks, messages up to this size go straight to every rank.

Sending n bytes to R - 1 ranks puts (R - 1)(1 - 2 / R) n more on a rank's link than a ring does. The
process group takes some 0.4 ms longer for any message (docs/latency.md), and at 1 Gbit/s that is
what the bytes cost from 75 KB for three ranks or 33 KB for four.
"""


class Connections(NamedTuple):
    """The sums that one rank takes part in.

    Attributes:
        streams: over ranks that hold other units: what the wirings begin and await.
        parts: over ranks that hold parts of the same sub-layers; None where nobody does.
        everyone: over all ranks, for choosing tokens.
    """

    streams: Collective
    parts: Collective | None
    everyone: Collective

    @property
    def transport(self) -> str:
        """What carries the messages, by name; it may change with a larger message."""
        names = (c.name for c in (self.everyone, self.streams, self.parts) if c is not None)
        return " and ".join(dict.fromkeys(filter(None, names)))

    @property
    def takes(self) -> str:
        """What emulated sums have taken from compute, for people; empty where that is nothing."""
        every = (self.streams, self.parts, self.everyone)
        said = (c.takes for c in every if isinstance(c, EmulatedLink))
        return " and ".join(dict.fromkeys(filter(None, said)))

    def over(self, link: LinkModel, shard: Shard) -> "Connections":
        """The same sums, no faster than over a modelled link."""
        outer = len(shard.outer_ranks)
        streams = EmulatedLink(self.streams, link, outer) if outer > 1 else self.streams
        everyone = EmulatedLink(self.everyone, link, shard.ranks)
        parts = self.parts and EmulatedLink(self.parts, link, shard.tensor_parallel)
        return Connections(streams, parts, everyone)

    def close(self) -> None:
        """Close all of them."""
        for collective in {
            id(c): c for c in (self.streams, self.parts, self.everyone) if c
        }.values():
            collective.close()


def connect(rank: Rank, shard: Shard, transport: Transport = "auto") -> Connections:
    """Connect this rank to the others; all ranks call it at the same point.

    Raises:
        KrakenError: a transport that this machine or these ranks do not have.
    """
    if rank.size == 1:
        return without_communication(shard, "none")
    with trying(*CONNECTING):
        return _connect(rank, shard, transport)


def _connect(rank: Rank, shard: Shard, transport: Transport) -> Connections:
    everyone = connect_group(Group(rank.index, rank.size), rank.device, transport, rank.note)
    if shard.tensor_parallel == 1:
        return Connections(everyone, None, everyone)
    if transport == "auto" and everyone.name == "sockets":  # so it is for a part of the ranks
        transport = "sockets"
    inner, outer = _sub_groups(shard)
    parts = connect_group(inner, rank.device, transport, rank.note)
    if outer.size == 1:
        return Connections(WithoutCommunication(1, ""), parts, everyone)
    return Connections(connect_group(outer, rank.device, transport, rank.note), parts, everyone)


def connect_group(
    group: Group,
    device: torch.device,
    transport: Transport = "auto",
    note: Callable[[str], None] = print_note,
) -> Collective:
    """Connect the ranks of one group; all of them call it.

    Args:
        group: the ranks.
        device: where this one computes.
        transport: what is to carry the messages.
        note: told on one rank, now or when a larger message comes, that it is something else.

    Raises:
        KrakenError: a transport that this machine or these ranks do not have.
    """
    assert transport in TRANSPORTS
    chosen = _choose(group, device, transport)
    if chosen == "shared-memory" and transport == "auto":
        return _SharedMemoryOrSockets(group, note)
    return _collective(chosen, group, device)


def without_communication(shard: Shard, name: str = "left out") -> Connections:
    """Every exchange left out: the bound for any overlap."""
    silent = WithoutCommunication(shard.ranks, name)
    parts = silent if shard.tensor_parallel > 1 else None
    return Connections(silent, parts, silent)


def emulated_peers(shard: Shard, device: torch.device) -> Connections:
    """One rank alone, to be put ``over`` a modelled link to those that are not there."""
    # Transports between CPUs copy where they send, which is left out like all their other work.
    alone = WithoutPeers(shard.ranks, copies=device.type == "cuda")
    return Connections(alone, alone if shard.tensor_parallel > 1 else None, alone)


def _choose(group: Group, device: torch.device, transport: Transport) -> str:
    if device.type == "cuda":
        return _choose_between_gpus(group, device, transport)
    if transport == "symmetric-memory":
        raise KrakenError("--transport symmetric-memory: is for GPUs: leave it out")
    shareable = _same_host(group, device) and is_supported()  # the ranks' machines may differ
    if transport == "shared-memory" and not shareable:
        raise KrakenError(
            "--transport shared-memory: needs all ranks on one x86 Linux host, in one network and "
            "one process namespace: use sockets"
        )
    if transport != "auto":
        return transport
    if shareable:
        return "shared-memory"
    return "sockets" if sys.platform == "linux" else "process-group"


def _choose_between_gpus(group: Group, device: torch.device, transport: Transport) -> str:
    if transport == "symmetric-memory":
        if not _same_host(group, device):
            raise KrakenError(f"--transport {transport}: needs all ranks on one host: leave it out")
        return transport
    if transport not in ("auto", "process-group"):
        raise KrakenError(f"--transport {transport}: GPUs exchange through NCCL: leave it out")
    return "process-group"  # auto as well: symmetric memory has not been measured


def _collective(name: str, group: Group, device: torch.device | None = None) -> Collective:
    if name == "shared-memory":
        return SharedMemoryReducer(group)
    if name == "process-group":
        return ProcessGroupReducer(group)
    if name == "symmetric-memory":
        assert device is not None
        small = SymmetricMemoryReducer(group, device)
        return _BySize(small, ProcessGroupReducer(group), MAX_BYTES)
    if group.size == 2:
        return SocketReducer(group)
    return _BySize(SocketReducer(group), ProcessGroupReducer(group), _DIRECT_BYTES)


class _SharedMemoryOrSockets:
    """Shared memory for as long as there is enough of it, sockets from then on.

    It may be missing from the start, or when a larger message comes. All ranks of the group meet
    that at the same message; what is under way by then arrives as it was begun.
    """

    def __init__(self, group: Group, note: Callable[[str], None]) -> None:
        self._group = group
        self._note = note
        self._inners: list[Collective] = []
        try:
            self._inners.append(SharedMemoryReducer(group))
        except NoSharedMemoryError as error:
            self._go_over(error)

    def begin(self, branches_KBTD: Tensor) -> Pending:
        try:
            return self._inners[-1].begin(branches_KBTD)
        except NoSharedMemoryError as error:
            return self._go_over(error).begin(branches_KBTD)

    def gather(self, x: Tensor) -> Tensor:
        try:
            return self._inners[-1].gather(x)
        except NoSharedMemoryError as error:
            return self._go_over(error).gather(x)

    def close(self) -> None:
        for inner in self._inners:
            inner.close()

    @property
    def name(self) -> str:
        return self._inners[-1].name

    def _go_over(self, error: NoSharedMemoryError) -> Collective:
        if self._group.index == 0:
            self._note(
                f"note: /dev/shm cannot hold the messages between the ranks ({error.reason}), so "
                f"they go through sockets: {error.advice}"
            )
        self._inners.append(_collective("sockets", self._group))
        return self._inners[-1]


class _BySize:
    """Small messages in one step to every rank, large ones by an AllReduce that divides them."""

    def __init__(self, small: Collective, large: Collective, limit: int) -> None:
        self._small = small
        self._large = large
        self._limit = limit  # bytes of the largest small message

    def begin(self, branches_KBTD: Tensor) -> Pending:
        nbytes = branches_KBTD[0].numel() * branches_KBTD.element_size()
        chosen = self._small if nbytes <= self._limit else self._large
        return chosen.begin(branches_KBTD)

    def gather(self, x: Tensor) -> Tensor:
        return self._small.gather(x)

    def close(self) -> None:
        self._small.close()
        self._large.close()

    @property
    def name(self) -> str:
        return self._small.name


def _sub_groups(shard: Shard) -> tuple[Group, Group]:
    """This rank's groups; every rank must help to make every group."""
    t, ranks = shard.tensor_parallel, shard.ranks
    inner = [list(range(start, start + t)) for start in range(0, ranks, t)]
    outer = [list(range(index, ranks, t)) for index in range(t)]
    mine: list[Group] = []
    for partition in (inner, outer):
        for members in partition:
            handle = dist.new_group(members)
            if shard.rank in members:
                mine.append(Group(members.index(shard.rank), len(members), handle))
    return mine[0], mine[1]


def _same_host(group: Group, device: torch.device) -> bool:
    """Whether all ranks see the same memory, processes and network interfaces."""
    identity = f"{socket.gethostname()} {boot()} {own_namespace('net')} {own_namespace('pid')}"
    return len(set(gather_texts(group, identity, device))) == 1
