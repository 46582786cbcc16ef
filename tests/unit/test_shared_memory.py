"""Memory that ranks cannot share, or no more of it, on some of them or on all.

The ranks are threads here, so that a test takes milliseconds; what they share is real.
"""

import errno
import os
import re
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from krakenlm.transport import collective, connect, shared_memory, sockets
from krakenlm.transport.collective import Group
from krakenlm.transport.shared_memory import NoSharedMemoryError

FOLDER = Path("/dev/shm")
CPU = torch.device("cpu")
SMALL, LARGE = 100, 200_000  # elements: within the first slots, and beyond them

if not (shared_memory.is_supported() and FOLDER.is_dir()):
    pytest.skip("ranks share no memory on this machine", allow_module_level=True)

Worker = Callable[[Group], Any]


@pytest.fixture
def ranks(monkeypatch) -> Callable[..., list[Any]]:
    """Runs a worker as each rank of a group; gloo's part is played by a list."""
    said: dict[int, list[Any]] = {}
    barrier = threading.Barrier(1)

    def exchanged(group: Group, mine: Any) -> list[Any]:
        said[group.index].append(mine)
        number = len(said[group.index]) - 1
        barrier.wait(10)
        return [said[rank][number] for rank in range(group.size)]

    class Gathers:
        def __init__(self, group: Group) -> None:
            self._group = group

        def gather(self, x: Tensor) -> Tensor:
            return torch.stack(exchanged(self._group, x))

    def run(worker: Worker, size: int = 2) -> list[Any]:
        nonlocal barrier
        barrier = threading.Barrier(size)
        said.update({rank: [] for rank in range(size)})
        with ThreadPoolExecutor(size) as pool:
            groups = [Group(rank, size) for rank in range(size)]
            # What gloo is asked by its handle, the list is asked by the group.
            groups = [replace(group, handle=cast("Any", group)) for group in groups]
            futures = [pool.submit(worker, group) for group in groups]
            return [future.result(30) for future in futures]

    def told_by_all(mine: Any, group: Group) -> list[Any]:
        return exchanged(group, mine)

    monkeypatch.setattr(collective, "ProcessGroupReducer", Gathers)
    monkeypatch.setattr(sockets, "told_by_all", told_by_all)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-4)  # they look again and again for one another's messages
    yield run
    sys.setswitchinterval(interval)


def refuse(monkeypatch, function: str, code: int, when: Callable[..., bool]) -> None:
    """Let the system refuse some calls of a function of ``os``."""
    real = getattr(os, function)

    def perhaps(*arguments: Any, **keywords: Any) -> Any:
        if when(*arguments):
            raise OSError(code, os.strerror(code))
        return real(*arguments, **keywords)

    monkeypatch.setattr(shared_memory.os, function, perhaps)


def summed(carrier: collective.Collective, group: Group, elements: int) -> bool:
    """Whether a sum is right."""
    found = carrier.begin(torch.full((1, 1, 1, elements), group.index + 1.0)).wait()
    return bool((found == sum(range(1, group.size + 1))).all())


def connected(notes: list[str], then: Worker) -> Worker:
    """A worker that sums over what ``auto`` chooses, and says what carried it."""

    def worker(group: Group) -> tuple[Any, str]:
        carrier = connect.connect_group(group, CPU, note=notes.append)
        result = then(carrier, group)
        carrier.close()
        return result, carrier.name

    return worker


def test_what_is_reserved_is_there():
    handle = shared_memory._reserve(1 << 20)
    try:
        assert os.fstat(handle).st_blocks * 512 >= 1 << 20
    finally:
        os.close(handle)


def test_ranks_share_memory_and_it_grows_without_a_note(ranks):
    notes: list[str] = []
    before = set(FOLDER.iterdir())
    worker = connected(notes, lambda c, g: [summed(c, g, n) for n in (SMALL, LARGE, SMALL)])
    assert ranks(worker) == 2 * [([True, True, True], "shared-memory")]
    assert notes == []
    assert set(FOLDER.iterdir()) <= before


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(
    ("code", "advice"),
    [
        (errno.ENOSPC, "--shm-size=1g"),
        (errno.ENOMEM, "--shm-size=1g"),
        (errno.EROFS, "mount a tmpfs there"),
        (errno.EACCES, "mount a tmpfs there"),
    ],
    ids=errno.errorcode.get,
)
def test_where_nothing_can_be_reserved_all_go_over_to_sockets(
    ranks, monkeypatch, code, advice, size
):
    notes: list[str] = []
    refuse(monkeypatch, "posix_fallocate", code, lambda *_: True)
    worker = connected(notes, lambda c, g: summed(c, g, SMALL))
    assert ranks(worker, size) == size * [(True, "sockets")]
    (note,) = notes
    assert f"({os.strerror(code)}), so they go through sockets" in note
    assert advice in note
    assert "\n" not in note


def test_where_the_folder_is_missing_all_go_over_to_sockets(ranks, monkeypatch, tmp_path):
    notes: list[str] = []
    monkeypatch.setattr(shared_memory, "_FOLDER", str(tmp_path / "missing"))
    assert ranks(connected(notes, lambda c, g: summed(c, g, SMALL))) == 2 * [(True, "sockets")]
    assert len(notes) == 1 and os.strerror(errno.ENOENT) in notes[0]


def test_where_one_rank_cannot_have_it_all_go_over_to_sockets(ranks, monkeypatch):
    notes: list[str] = []
    seen: list[str] = []

    def second_rank(path: str, *_: int) -> bool:
        if str(path).startswith("/proc/"):
            seen.append(path)
        return len(seen) == 2 and str(path).startswith("/proc/")

    refuse(monkeypatch, "open", errno.EACCES, second_rank)
    assert ranks(connected(notes, lambda c, g: summed(c, g, SMALL))) == 2 * [(True, "sockets")]
    assert len(notes) == 1 and os.strerror(errno.EACCES) in notes[0]


def test_another_file_at_the_same_place_is_not_taken(tmp_path):
    (tmp_path / "other").write_bytes(b"0" * 4096)
    with pytest.raises(FileNotFoundError):
        shared_memory._mapped(str(tmp_path / "other"), "1:2", 4096)


def test_memory_that_ends_with_a_larger_message_loses_no_sum(ranks, monkeypatch):
    """Begun before, begun after, awaited in another order."""
    notes: list[str] = []
    reserved: list[int] = []

    def grows(handle: int, start: int, length: int) -> bool:
        reserved.append(length)
        return length > reserved[0]

    def many(carrier: collective.Collective, group: Group) -> list[float]:
        def begin(number: int, elements: int) -> Any:
            return carrier.begin(torch.full((1, 1, 1, elements), float(number + group.index)))

        early = [begin(number, SMALL) for number in range(3)]
        late = [begin(10, LARGE), begin(20, SMALL)]
        found = [p.wait() for p in (late[0], *early, late[1])]
        assert all((x == x.flatten()[0]).all() for x in found)
        gathered = carrier.gather(torch.tensor([group.index]))
        return [float(x.flatten()[0]) for x in found] + gathered.flatten().tolist()

    refuse(monkeypatch, "posix_fallocate", errno.ENOSPC, grows)
    expected = [21.0, 1.0, 3.0, 5.0, 41.0, 0, 1]
    assert ranks(connected(notes, many)) == 2 * [(expected, "sockets")]
    assert len(notes) == 1


@pytest.mark.parametrize("elements", [SMALL, LARGE])
def test_shared_memory_that_was_asked_for_is_refused_on_every_rank(ranks, monkeypatch, elements):
    reserved: list[int] = []

    def from_then_on(handle: int, start: int, length: int) -> bool:
        reserved.append(length)
        return elements == SMALL or length > reserved[0]

    def worker(group: Group) -> str:
        with pytest.raises(NoSharedMemoryError) as refused:
            summed(connect.connect_group(group, CPU, "shared-memory"), group, elements)
        return str(refused.value)

    refuse(monkeypatch, "posix_fallocate", errno.ENOSPC, from_then_on)
    first, second = ranks(worker)
    assert first == second
    assert re.fullmatch(
        r"--transport shared-memory: /dev/shm cannot hold \d+\.\d MB of messages \(No space left "
        r"on device\): give it more room, .*, or use --transport sockets",
        first,
    )
