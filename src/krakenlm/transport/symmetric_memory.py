"""Small sums between GPUs of one host: one kernel reads every rank's message and adds them up.

A message lies in PyTorch's symmetric memory, where the GPUs of all ranks reach it over NVLink or
PCIe. The interface is one that PyTorch calls alpha; only what its documentation and tests use is
used here.

Shape letters: see ``krakenlm.model``; Y is the bytes of a buffer.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch import distributed as dist

from krakenlm.errors import KrakenError
from krakenlm.model.reduce import Pending
from krakenlm.transport.collective import Group, ProcessGroupReducer, gather_texts, sum_branches

MAX_BYTES = 1 << 18
"""Larger messages are NCCL's.

In one step each of R ranks reads R - 1 messages of n bytes; an AllReduce that divides them moves
2 (R - 1) / R of n. For two ranks that is the same, for eight a quarter. PyTorch's IntraNodeComm
stops at this size, as does vLLM's kernel among eight GPUs. Not measured with this code.
"""

_ALIGNMENT = 16
"""Bytes that a thread of the kernel loads at a time; it refuses sizes that 4 does not divide."""
_DTYPES = (torch.float32, torch.bfloat16)  # the kernel has no others
_LEAST_CAPABILITY = (8, 0)  # older GPUs do not add bfloat16, and the kernel aborts there
_OPTION = "--transport symmetric-memory"

_T = TypeVar("_T")


class SymmetricMemoryReducer:
    """Sums messages of up to ``MAX_BYTES`` over GPUs that read each other; a ``Collective``.

    **Never run**: no machine with two GPUs was at hand.

    Sums run one after the other on a stream of their own, beside compute. The kernel ends when
    every rank has read every message, so one buffer serves any number of sums under way. It adds
    in rank order, which gives the same bits everywhere.

    A sum forks from the stream that begins it and joins the one that awaits it, with no word from
    the host, so that it can be part of a CUDA graph. Sums begun outside a graph must have been
    awaited when it is replayed, and ``branches_KBTD`` keeps its values until the sum is awaited.
    A rank that ends too early leaves the others' kernels waiting; who started them must end them.

    Raises:
        KrakenError: on all ranks, where one of them cannot share memory with the others.
    """

    name = "symmetric-memory"

    def __init__(self, group: Group, device: torch.device) -> None:
        # PyTorch's module is private; whoever does not choose it does not depend on it.
        from torch.distributed import _symmetric_memory as symm_mem

        handle = dist.group.WORLD if group.handle is None else group.handle
        assert handle is not None
        peers = [int(index) for index in gather_texts(group, str(device.index), device)]
        self._buffer_Y = _on_all(group, device, lambda: _allocate(device, peers))
        _on_all(group, device, lambda: symm_mem.rendezvous(self._buffer_Y, handle))
        self._name: str = handle.group_name
        self._process_group = ProcessGroupReducer(group)
        # Ahead of compute: its few blocks would otherwise start behind a whole matrix product.
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]

    def begin(self, branches_KBTD: Tensor) -> Pending:
        """Write the sum of the local branches where the others read it, and start adding."""
        dtype, shape = branches_KBTD.dtype, (1, *branches_KBTD.shape[1:])
        if dtype not in _DTYPES:
            return self._process_group.begin(branches_KBTD)
        count = torch.Size(shape).numel()
        padded = -(-count * dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
        assert padded <= MAX_BYTES, f"a message of {padded} bytes"
        message = self._buffer_Y[:padded].view(dtype)  # what pads it is summed, and never read
        # Allocated for the stream that begins: it will also free and reuse this memory, and by
        # then it has waited.
        total = torch.empty_like(message)
        self._stream.wait_stream(torch.cuda.current_stream(branches_KBTD.device))
        with torch.cuda.stream(self._stream):
            sum_branches(branches_KBTD, message[:count].view(shape))
            torch.ops.symm_mem.one_shot_all_reduce_out(message, "sum", self._name, total)
            done = self._stream.record_event()
        return _Begun(total[:count].view(shape), done, branches_KBTD)

    def gather(self, x: Tensor) -> Tensor:
        """Every rank's ``x``, stacked; through the process group."""
        return self._process_group.gather(x)

    def close(self) -> None:
        """Let the buffer go."""
        del self._buffer_Y


class _Begun(NamedTuple):
    """A sum on the side stream.

    ``branches_KBTD`` is only held: the side stream reads it, and the allocator, which does not
    know that, must not hand its memory out before the sum is awaited.
    """

    total_1BTD: Tensor
    done: torch.cuda.Event
    branches_KBTD: Tensor

    def wait(self) -> Tensor:
        """Make the current stream wait; the host goes on."""
        torch.cuda.current_stream(self.total_1BTD.device).wait_event(self.done)
        return self.total_1BTD


def _allocate(device: torch.device, peers: list[int]) -> Tensor:
    """The buffer of this rank, if all GPUs of the group can read it.

    Args:
        device: this rank's GPU.
        peers: the numbers of all ranks' GPUs, which count on one host only.
    """
    from torch.distributed import _symmetric_memory as symm_mem

    if symm_mem.get_backend(device) is None:
        raise KrakenError(f"{_OPTION}: this PyTorch has none for GPUs: leave it out")
    if torch.cuda.get_device_capability(device) < _LEAST_CAPABILITY:
        raise KrakenError(f"{_OPTION}: needs GPUs of compute capability 8.0 or more: leave it out")
    if len(set(peers)) < len(peers) or max(peers) >= torch.cuda.device_count():
        raise KrakenError(f"{_OPTION}: every rank must see the GPUs of all ranks: leave it out")
    for peer in peers:
        if peer != device.index and not torch.cuda.can_device_access_peer(device, peer):
            raise KrakenError(
                f"{_OPTION}: GPU {device.index} cannot read the memory of GPU {peer}: leave it out"
            )
    return symm_mem.empty(MAX_BYTES, dtype=torch.uint8, device=device)


def _on_all(group: Group, device: torch.device, step: Callable[[], _T]) -> _T:
    """Take a step on every rank; where one rank cannot, all refuse, and none waits for it."""
    done: list[_T] = []
    problem = ""
    try:
        done.append(step())
    except KrakenError as error:
        problem = str(error)
    except RuntimeError as error:  # what drivers and containers have against it
        problem = f"{_OPTION}: {str(error).partition(chr(10))[0]}: leave it out"
    for said in gather_texts(group, problem, device):
        if said:
            raise KrakenError(said)
    return done[0]
