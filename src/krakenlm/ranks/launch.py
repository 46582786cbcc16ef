"""Ranks: started here as processes of this machine, or found waiting under ``torchrun``.

A worker is a module-level function ``worker(rank, *arguments)`` that returns nothing; what it has
to say it sends with ``rank.emit``, and the caller's ``on_message`` receives it in the parent. No
process group exists before ``launch`` or after it, and no rank outlives it.
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, Literal

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import Store

from krakenlm.console import print_note
from krakenlm.errors import KrakenError, trying
from krakenlm.ranks.activity import Activity
from krakenlm.ranks.agreement import require_same_version
from krakenlm.ranks.cores import share_cores
from krakenlm.ranks.devices import DeviceType, device_of
from krakenlm.ranks.failures import (
    CONNECTING,
    REPORT,
    TIMEOUT_SECONDS,
    Failure,
    Note,
    failure_of,
    once,
)
from krakenlm.ranks.life import Loss, OnLoss, living
from krakenlm.ranks.namespaces import Namespace
from krakenlm.ranks.network import check_interface
from krakenlm.ranks.processes import run_processes
from krakenlm.ranks.torchrun import ended_by_sigterm, ending_with_parent, store_of_this_attempt

Worker = Callable[..., None]
OnMessage = Callable[[Any], None]

# A rank that waits longer than this for another one gives up.
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)


@dataclass(frozen=True)
class Rank:
    """What a worker knows of itself.

    Attributes:
        index: 0 to size - 1.
        size: ranks altogether; above 1 the default process group is ready.
        device: where this rank computes.
        emit: sends a picklable message to the caller of ``launch``.
        note: tells people something on standard error; the same from several ranks is told once.
        activity: is told what this rank does, for whoever reports that it ended.
    """

    index: int
    size: int
    device: torch.device
    emit: Callable[[Any], None]
    note: Callable[[str], None] = print_note
    activity: Activity = field(default_factory=Activity)


def launch(
    worker: Worker,
    arguments: Sequence[Any],
    *,
    devices: int,
    on_message: OnMessage,
    device_type: DeviceType = "auto",
    threads: int | None = None,
    places: Sequence[Namespace] | None = None,
    timeout: float = TIMEOUT_SECONDS,
) -> None:
    """Run ``worker`` on every rank and return when all are done.

    Under ``torchrun`` the ranks exist already and this process is one of them; ``on_message`` then
    hears this rank alone. Otherwise ``devices`` processes are started, or none where one device
    needs none. gloo carries the messages between CPUs, NCCL those between GPUs. Each of several
    ranks on a machine keeps to its share of the cores, with ``threads`` compute threads or one for
    each core. With ``places``, one for each process, they live in these network namespaces. A rank
    that gives no sign of life for ``timeout`` seconds is lost, and all end; with 0 the others wait
    for as long as the transport lets them.

    Raises:
        KrakenError: what a rank could not do, or a number of devices that does not fit.
        RankFailedError: a rank failed otherwise; the cause holds its traceback.
        RuntimeError: a rank vanished, or gave no sign of life.
    """
    if under_torchrun():
        assert places is None, "torchrun's processes are where they are"
        _run_under_torchrun(worker, arguments, devices, on_message, device_type, threads, timeout)
    elif devices == 1:
        if threads:
            torch.set_num_threads(threads)
        device = device_of(device_type)
        worker(Rank(0, 1, device, on_message, once(print_note)), *arguments)
    else:
        of_all = (devices, device_type, threads, places, timeout)
        _start_processes(worker, arguments, on_message, *of_all)


def under_torchrun() -> bool:
    """Whether ``torchrun`` (or anything that speaks its environment) started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def is_first_process() -> bool:
    """Whether this process speaks to people: any but torchrun's ranks above 0."""
    return not under_torchrun() or int(os.environ["RANK"]) == 0


def world_size() -> int:
    """Ranks that ``torchrun`` started; 1 where it did not."""
    return int(os.environ["WORLD_SIZE"]) if under_torchrun() else 1


def _run_under_torchrun(
    worker: Worker,
    arguments: Sequence[Any],
    devices: int,
    on_message: OnMessage,
    device_type: DeviceType,
    threads: int | None,
    timeout: float,
) -> None:
    index, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if devices != size:
        raise KrakenError(
            f"--devices {devices} under torchrun with {size} processes: leave --devices out or "
            f"give --devices {size}"
        )
    local_index = int(os.environ.get("LOCAL_RANK", index))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    device = device_of(device_type, local_index, local_size)
    share_cores(local_index, local_size, threads)
    rank = Rank(index, size, device, on_message, once(print_note))
    with (
        ending_with_parent(),
        _process_group("env://", rank, timeout, end_on_loss, store_of_this_attempt()),
        trying("doing its part", REPORT),
    ):
        require_same_version()
        worker(rank, *arguments)


def _start_processes(
    worker: Worker,
    arguments: Sequence[Any],
    on_message: OnMessage,
    devices: int,
    device_type: DeviceType,
    threads: int | None,
    places: Sequence[Namespace] | None,
    timeout: float,
) -> None:
    device = device_of(device_type, 0, devices)  # refuse here, not in every rank
    assert places is None or len(places) == devices
    if device.type == "cpu" and places is None:
        check_interface(_interface())
    with tempfile.TemporaryDirectory(prefix="krakenlm-") as folder:
        # A file to meet at needs no port, so nothing can be taken and nothing listens outside.
        meeting_point = (Path(folder) / "rendezvous").as_uri()
        of_all = (devices, device_type, threads, meeting_point, places, timeout)
        prepare = tuple if places is None else places[0].enter_user
        run_processes(_rank, [worker, arguments, *of_all], devices, on_message, prepare, timeout)


def _rank(
    index: int,
    writer: Connection,
    activity: Activity,
    worker: Worker,
    arguments: Sequence[Any],
    size: int,
    device_type: DeviceType,
    threads: int | None,
    meeting_point: str,
    places: Sequence[Namespace] | None,
    timeout: float,
) -> None:
    activity("starting")
    with trying("finding its cores and its device", REPORT):
        share_cores(index, size, threads)
        device = device_of(device_type, index, size)
    interface = _interface()
    if places is not None:
        with trying("entering its network namespace", REPORT):
            places[index].enter()
        interface = places[index].interface
    os.environ["GLOO_SOCKET_IFNAME"] = interface
    voice = _Voice(writer)
    note = once(lambda text: voice.say(Note(text)))
    rank = Rank(index, size, device, voice.say, note, activity)
    # A failure is said inside the group: leaving it breaks the others' connections.
    with (
        suppress(_AlreadySaidError),
        _process_group(meeting_point, rank, timeout, voice.end_on_loss),
        _failures_to(voice, index),
        trying("doing its part", REPORT),
    ):
        worker(rank, *arguments)


class _Voice:
    """A rank's end of its pipe to the process that started it, for more threads than one."""

    def __init__(self, writer: Connection) -> None:
        self._writer = writer
        self._lock = threading.Lock()

    def say(self, message: Any) -> None:
        """Send a message."""
        with self._lock:
            self._writer.send(message)

    def end_on_loss(self, loss: Loss) -> None:
        """Say what is lost and end this process, whatever its other threads wait for."""
        kind: Literal["silent", "not ours"] = "silent" if loss.silent else "not ours"
        if self._lock.acquire(timeout=1.0):  # or nobody reads
            with suppress(OSError):
                self._writer.send(Failure(f"krakenlm {loss.text}", kind, time.monotonic()))
        os._exit(0)  # all is said


def end_on_loss(loss: Loss) -> None:
    """The same for a process that torchrun or accelerate started."""
    sys.stderr.write(f"krakenlm: {loss.text}\n")
    sys.stderr.flush()
    os._exit(1)


class _AlreadySaidError(Exception):
    """A failure that the parent knows of."""


@contextmanager
def _failures_to(voice: _Voice, index: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        voice.say(failure_of(error, index))
        raise _AlreadySaidError from error


def _interface() -> str:
    """Where gloo of ranks on one machine listens; by default nowhere outside it."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return os.environ.get("GLOO_SOCKET_IFNAME") or loopback


@contextmanager
def _process_group(
    meeting_point: str,
    rank: Rank,
    timeout: float,
    on_loss: OnLoss,
    store: Store | None = None,
) -> Iterator[None]:
    rank.activity("connecting to the other ranks")
    with trying(*CONNECTING), ended_by_sigterm():
        dist.init_process_group(
            backend="nccl" if rank.device.type == "cuda" else "gloo",
            init_method=meeting_point if store is None else None,
            store=store,
            rank=rank.index,
            world_size=rank.size,
            timeout=_COLLECTIVE_TIMEOUT,
        )
    try:
        with living(rank.index, rank.size, rank.activity, timeout, on_loss):
            rank.activity("doing its part")
            yield
            dist.barrier()  # nobody leaves while another still listens
    finally:
        dist.destroy_process_group()
