"""Which processes train one model together, and how do they agree?

torchrun and ``accelerate launch`` start them and say how many there are; everybody else trains in
one process, for which all of this is nothing.
"""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import distributed

from krakenlm.errors import KrakenError, trying
from krakenlm.ranks.activity import Activity
from krakenlm.ranks.agreement import require_same_version
from krakenlm.ranks.failures import CONNECTING, TIMEOUT_SECONDS
from krakenlm.ranks.launch import end_on_loss
from krakenlm.ranks.life import living
from krakenlm.ranks.torchrun import ended_by_sigterm, ending_with_parent, store_of_this_attempt

_T = TypeVar("_T")
# Messages about the run itself travel between CPUs and never wait for a GPU's queue.
_GPU_BACKENDS = "cuda:nccl,cpu:gloo"


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        index: of this process, from 0.
        count: how many there are.
        activity: is told what this process does, for the others to report if it is lost.
    """

    index: int = 0
    count: int = 1
    activity: Activity = field(default_factory=Activity)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and speaks to the terminal."""
        return self.index == 0

    def first(self, action: Callable[[], _T]) -> _T:
        """Let the main process act; its result, or its refusal, is everybody's.

        Raises:
            KrakenError: in the main process, what ``action`` raised; the others end without a word.
        """
        if self.count == 1:
            return action()
        outcome: list[object] = [None, ""]
        refusal: KrakenError | None = None
        if self.is_main:
            try:
                outcome = [action(), ""]
            except KrakenError as error:
                refusal, outcome = error, [None, str(error)]
        distributed.broadcast_object_list(outcome)
        if refusal is not None:
            raise refusal
        if outcome[1]:
            sys.exit(2)
        return outcome[0]  # type: ignore[return-value]

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any process."""
        if self.count == 1:
            return flag
        votes = torch.tensor(int(flag))
        distributed.all_reduce(votes, distributed.ReduceOp.MAX)
        return bool(votes)

    def wait(self) -> None:
        """Wait until every process has come this far."""
        self.any(False)


def is_main_process() -> bool:
    """Whether this process is the first that torchrun or accelerate started, or the only one."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def joined(use_cpu: bool, timeout: float = TIMEOUT_SECONDS) -> Iterator[Ranks]:
    """The processes that torchrun or accelerate started, connected; or this one alone.

    Args:
        use_cpu: connect over gloo alone, not over NCCL.
        timeout: seconds without a sign of life after which a process is lost, and all end.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Ranks()
        return
    with ending_with_parent():
        ranks = _connected(use_cpu)
        with living(ranks.index, ranks.count, ranks.activity, timeout, end_on_loss):
            require_same_version()
            yield ranks
            ranks.wait()  # nobody leaves while another still listens
        # Not after an error: the others may be in the middle of a sum, and end with this process.
        distributed.destroy_process_group()


def _connected(use_cpu: bool) -> Ranks:
    """This process among the others. Trainer's own state finds the connection and keeps it."""
    from accelerate import PartialState

    with trying(*CONNECTING), ended_by_sigterm():
        options: dict[str, Any] = {"backend": None if use_cpu else _GPU_BACKENDS}
        store = store_of_this_attempt()
        if store is not None:
            sizes = {name: int(os.environ[name.upper()]) for name in ("rank", "world_size")}
            options |= {"store": store, **sizes}
        state = PartialState(cpu=use_cpu, **options)
    return Ranks(state.process_index, state.num_processes)


def share(batch_size: int, accumulation: int, ranks: int) -> tuple[int, int]:
    """A process's batch size and forward passes, so that a step learns from as many sequences.

    Args:
        batch_size: of one process alone, the largest that any gets.
        accumulation: forward passes of one process alone.
        ranks: processes that share the step.

    Raises:
        KrakenError: the sequences cannot be divided.
    """
    sequences, rest = divmod(batch_size * accumulation, ranks)
    if rest or not sequences:
        raise KrakenError(
            f"{batch_size * accumulation} sequences of a step cannot be divided among {ranks} "
            "processes: change batch_size or gradient_accumulation, or start as many as divide it"
        )
    size = max(size for size in range(1, batch_size + 1) if sequences % size == 0)
    return size, sequences // size
