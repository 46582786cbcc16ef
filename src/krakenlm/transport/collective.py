"""Sums over ranks: what every transport offers, and PyTorch's process groups as one of them.

Shape letters: see ``krakenlm.model``; R is the ranks of a group.
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor
from torch import distributed as dist

from krakenlm.model.reduce import LocalReducer, Pending, Ready, Reducer


@dataclass(frozen=True)
class Group:
    """Ranks that sum together.

    Attributes:
        index: this rank's place among them.
        size: how many they are.
        handle: their process group; None is the default one.
    """

    index: int
    size: int
    handle: dist.ProcessGroup | None = None


class Collective(Reducer, Protocol):
    """A Reducer across ranks that can also gather small tensors.

    All ranks of a group call the same methods in the same order, with tensors of one shape. Sums
    may be awaited in any order, and have the same bits on every rank.
    """

    def begin(self, branches_KBTD: Tensor) -> Pending:
        """Sum the branches held here and start the sum over ranks."""
        ...

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's ``x`` in rank order, stacked along a new first axis."""
        ...

    def close(self) -> None:
        """Give back what the transport holds; nothing may be under way."""
        ...

    @property
    def name(self) -> str:
        """What carries the messages."""
        ...


def sum_branches(branches_KBTD: Tensor, out_1BTD: Tensor) -> None:
    """Write the sum over the leading axis into a message buffer."""
    if branches_KBTD.shape[0] == 1:
        out_1BTD.copy_(branches_KBTD)
    else:
        torch.sum(branches_KBTD, dim=0, keepdim=True, out=out_1BTD)


_TEXT_BYTES = 256


def gather_texts(group: Group, text: str, device: torch.device | None = None) -> list[str]:
    """Every rank's text, in rank order; long ones are cut.

    Args:
        group: the ranks.
        text: what this rank says.
        device: where the process group exchanges tensors: NCCL's are on the GPU.
    """
    encoded = text.encode()[:_TEXT_BYTES]
    card = torch.zeros(_TEXT_BYTES, dtype=torch.uint8, device=device)
    card[: len(encoded)] = torch.tensor(list(encoded), dtype=torch.uint8)
    cards = ProcessGroupReducer(group).gather(card).tolist()
    return [bytes(other).rstrip(b"\0").decode(errors="ignore") for other in cards]


class WithoutCommunication(LocalReducer):
    """Leaves the exchange out: all that a single rank needs, wrong numbers for several.

    With several, the bound for any overlap: the time that compute alone takes. Gathered tensors
    are this rank's own, once for each rank.

    Args:
        ranks: how many the others see.
        name: what to say that carries the messages.
    """

    def __init__(self, ranks: int, name: str = "left out") -> None:
        self._ranks = ranks
        self.name = name

    def gather(self, x: Tensor) -> Tensor:
        """This rank's tensor in everybody's place."""
        return x.unsqueeze(0).expand(self._ranks, *x.shape)

    def close(self) -> None:
        """Nothing to give back."""


class WithoutPeers(WithoutCommunication):
    """The only one there of several ranks; a modelled link says when the others' sums come.

    Args:
        ranks: how many there seem to be.
        copies: put each message together in memory of its own, as ``ProcessGroupReducer`` does.
    """

    def __init__(self, ranks: int, *, copies: bool) -> None:
        super().__init__(ranks, "emulated-peers")
        self._copies = copies

    def begin(self, branches_KBTD: Tensor) -> Ready:
        """The sum of what is held here."""
        if not self._copies:
            return super().begin(branches_KBTD)
        total_1BTD = torch.empty_like(branches_KBTD[:1])
        sum_branches(branches_KBTD, total_1BTD)
        return Ready(total_1BTD)


class InFlight(NamedTuple):
    """An AllReduce under way; gloo's threads or NCCL's stream carry it forward."""

    total_1BTD: Tensor
    work: dist.Work

    def wait(self) -> Tensor:
        """Block until the sum over all ranks is there (on a GPU: make its stream wait)."""
        self.work.wait()
        return self.total_1BTD


class ProcessGroupReducer:
    """Sums with the process group's own AllReduce: gloo between CPUs, NCCL between GPUs.

    NCCL runs on a stream of its own, beside compute, and can be captured in a CUDA graph.
    """

    name = "process-group"

    def __init__(self, group: Group) -> None:
        self._group = group

    def begin(self, branches_KBTD: Tensor) -> InFlight:
        """Start the AllReduce on a buffer of its own, since ``branches_KBTD`` is still read."""
        total_1BTD = torch.empty_like(branches_KBTD[:1])
        sum_branches(branches_KBTD, total_1BTD)
        work = dist.all_reduce(total_1BTD, group=self._group.handle, async_op=True)
        assert work is not None
        return InFlight(total_1BTD, work)

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's ``x``, stacked."""
        gathered = x.new_empty((self._group.size, *x.shape))
        dist.all_gather(list(gathered.unbind()), x.contiguous(), group=self._group.handle)
        return gathered

    def close(self) -> None:
        """The process group belongs to whoever made it."""
