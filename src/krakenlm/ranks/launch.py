"""Ranks: started here as processes of this machine, or found waiting under ``torchrun``.

A worker is a module-level function ``worker(rank, *arguments)`` that returns nothing; what it has
to say it sends with ``rank.emit``, and the caller's ``on_message`` receives it in the parent. No
process group exists before ``launch`` or after it, and no rank outlives it.
"""

import multiprocessing
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import distributed as dist

from krakenlm.console import print_note
from krakenlm.errors import KrakenError, trying
from krakenlm.ranks.cores import share_cores
from krakenlm.ranks.devices import DeviceType
from krakenlm.ranks.failures import REPORT, Failure, Note, failure_of, once, vanished
from krakenlm.ranks.network import check_interface

Worker = Callable[..., None]
OnMessage = Callable[[Any], None]

# A rank that waits longer than this for another one gives up.
_COLLECTIVE_TIMEOUT = timedelta(minutes=10)
_SECONDS_TO_END = 5.0

CONNECTING = (
    "connecting to the other ranks",
    "check that a network interface is up (`ip addr`) and that no firewall stands between them",
)
"""For ``trying``."""


@dataclass(frozen=True)
class Rank:
    """What a worker knows of itself.

    Attributes:
        index: 0 to size - 1.
        size: ranks altogether; above 1 the default process group is ready.
        device: where this rank computes.
        emit: sends a picklable message to the caller of ``launch``.
        note: tells people something on standard error; the same from several ranks is told once.
    """

    index: int
    size: int
    device: torch.device
    emit: Callable[[Any], None]
    note: Callable[[str], None] = print_note


def launch(
    worker: Worker,
    arguments: Sequence[Any],
    *,
    devices: int,
    on_message: OnMessage,
    device_type: DeviceType = "auto",
    threads: int | None = None,
) -> None:
    """Run ``worker`` on every rank and return when all are done.

    Under ``torchrun`` the ranks exist already and this process is one of them; ``on_message`` then
    hears this rank alone. Otherwise ``devices`` processes are started, or none where one device
    needs none. gloo carries the messages between CPUs, NCCL those between GPUs. Each of several
    ranks on a machine keeps to its share of the cores, with ``threads`` compute threads or one for
    each core.

    Raises:
        KrakenError: what a rank could not do, or a number of devices that does not fit.
        RankFailedError: a rank failed otherwise; the cause holds its traceback.
        RuntimeError: a rank vanished.
    """
    if under_torchrun():
        _run_under_torchrun(worker, arguments, devices, on_message, device_type, threads)
    elif devices == 1:
        if threads:
            torch.set_num_threads(threads)
        device = _device(device_type, 0, 1)
        worker(Rank(0, 1, device, on_message, once(print_note)), *arguments)
    else:
        _start_processes(worker, arguments, devices, on_message, device_type, threads)


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
) -> None:
    index, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    if devices != size:
        raise KrakenError(
            f"--devices {devices} under torchrun with {size} processes: leave --devices out or "
            f"give --devices {size}"
        )
    local_index = int(os.environ.get("LOCAL_RANK", index))
    local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
    device = _device(device_type, local_index, local_size)
    share_cores(local_index, local_size, threads)
    with _process_group("env://", index, size, device), trying("doing its part", REPORT):
        worker(Rank(index, size, device, on_message, once(print_note)), *arguments)


def _start_processes(
    worker: Worker,
    arguments: Sequence[Any],
    devices: int,
    on_message: OnMessage,
    device_type: DeviceType,
    threads: int | None,
) -> None:
    device = _device(device_type, 0, devices)  # refuse here, not in every rank
    if device.type == "cpu":
        check_interface(_interface())
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="krakenlm-") as folder:
        # A file to meet at needs no port, so nothing can be taken and nothing listens outside.
        meeting_point = (Path(folder) / "rendezvous").as_uri()
        processes: list[BaseProcess] = []
        readers: list[Connection] = []
        try:
            for index in range(devices):
                reader, writer = context.Pipe(duplex=False)
                process = context.Process(
                    target=_child,
                    args=(
                        *(worker, arguments, index, devices),
                        *(device_type, threads, meeting_point, writer),
                    ),
                    name=f"krakenlm rank {index}",
                )
                with _ctrl_c_held_back():
                    process.start()
                    processes.append(process)
                writer.close()
                readers.append(reader)
            _listen(processes, readers, on_message)
        finally:
            _end(processes)


@contextmanager
def _ctrl_c_held_back() -> Iterator[None]:
    """Processes started meanwhile inherit the hold: importing, they would print a traceback."""
    resource_tracker.ensure_running()  # starting it later would lift the hold
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _listen(processes: list[BaseProcess], readers: list[Connection], on_message: OnMessage) -> None:
    """Pass messages on until every rank is done; raise for the first that fails."""
    open_readers = list(readers)
    failures: list[Failure] = []
    note = once(print_note)
    while open_readers:
        # Once a rank has failed, the others get a moment to say why, then no more.
        ready = wait(open_readers, timeout=1.0 if failures else None)
        if failures and not ready:
            break
        for reader in ready:
            assert isinstance(reader, Connection)
            try:
                message = reader.recv()
            except EOFError:
                open_readers.remove(reader)
                process = processes[readers.index(reader)]
                process.join(_SECONDS_TO_END)
                if process.exitcode:
                    failures.append(Failure(vanished(process), "vanished"))
                continue
            if isinstance(message, Failure):
                failures.append(message)
            elif isinstance(message, Note):
                note(message.text)
            else:
                on_message(message)
    if failures:
        raise min(failures, key=lambda failure: failure.order).as_exception()


def _end(processes: list[BaseProcess]) -> None:
    for process in processes:
        if process.is_alive():
            process.terminate()
    for process in processes:
        process.join(_SECONDS_TO_END)
        if process.is_alive():
            process.kill()
            process.join()


def _child(
    worker: Worker,
    arguments: Sequence[Any],
    index: int,
    size: int,
    device_type: DeviceType,
    threads: int | None,
    meeting_point: str,
    writer: Connection,
) -> None:
    # A rank writes no files, so Ctrl-C may end it on the spot; the parent tidies up.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    _die_with_parent()
    try:
        with trying("finding its cores and its device", REPORT):
            share_cores(index, size, threads)
            device = _device(device_type, index, size)
        os.environ["GLOO_SOCKET_IFNAME"] = _interface()
        note = once(lambda text: writer.send(Note(text)))
        # A failure is said inside the group: leaving it breaks the others' connections.
        with (
            _process_group(meeting_point, index, size, device),
            _failures_to(writer, index),
            trying("doing its part", REPORT),
        ):
            worker(Rank(index, size, device, writer.send, note), *arguments)
    except _AlreadySaidError:
        pass
    except BaseException as error:
        writer.send(failure_of(error, index))
    finally:
        writer.close()
        sys.stdout.flush()
        sys.stderr.flush()
        # All is said and done. Winding down, C++ now and then destroys a thread of gloo's that is
        # still there, and that aborts the process.
        os._exit(0)


class _AlreadySaidError(Exception):
    """A failure that the parent knows of."""


@contextmanager
def _failures_to(writer: Connection, index: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        writer.send(failure_of(error, index))
        raise _AlreadySaidError from error


def _interface() -> str:
    """Where gloo of ranks on one machine listens; by default nowhere outside it."""
    loopback = "lo0" if sys.platform == "darwin" else "lo"
    return os.environ.get("GLOO_SOCKET_IFNAME") or loopback


def _die_with_parent() -> None:
    """End this process when its parent is gone, however that came about."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch parent").start()


@contextmanager
def _process_group(
    meeting_point: str, index: int, size: int, device: torch.device
) -> Iterator[None]:
    with trying(*CONNECTING):
        dist.init_process_group(
            backend="nccl" if device.type == "cuda" else "gloo",
            init_method=meeting_point,
            rank=index,
            world_size=size,
            timeout=_COLLECTIVE_TIMEOUT,
        )
    try:
        yield
        dist.barrier()  # nobody leaves while another still listens
    finally:
        dist.destroy_process_group()


def _device(device_type: DeviceType, local_index: int, local_size: int) -> torch.device:
    gpus = torch.cuda.device_count() if device_type != "cpu" else 0
    if device_type == "cuda" and gpus < local_size:
        raise KrakenError(
            f"--device cuda: {local_size} ranks need {local_size} GPUs and this machine has "
            f"{gpus}: use fewer --devices or --device cpu"
        )
    if gpus >= local_size:
        torch.cuda.set_device(local_index)
        return torch.device("cuda", local_index)
    return torch.device("cpu")
