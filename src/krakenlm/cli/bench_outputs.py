"""What the commands that measure do alike: outputs, progress, how many ranks."""

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from krakenlm.errors import KrakenError


def number_of(devices: int | None) -> int:
    """Of ranks: 2 where nobody says it, under torchrun as many as it started."""
    from krakenlm.ranks.launch import under_torchrun, world_size

    if devices is not None:
        return devices
    return world_size() if under_torchrun() else 2


def check_pictures(*paths: Path | None) -> None:
    """Refuse pictures that are no PNG."""
    for path in paths:
        if path is not None and path.suffix.lower() != ".png":
            raise KrakenError(f"cannot draw {path}: pictures are PNG: give it the ending .png")


class _TriedError(Exception):
    """A file could be written."""


def check_outputs(*paths: Path | None) -> None:
    """Refuse what cannot be written before time is spent on measuring."""
    from krakenlm.files import whole_file
    from krakenlm.ranks.launch import is_first_process

    for path in paths:
        if path is None or not is_first_process():
            continue
        if path.is_dir():
            raise KrakenError(f"cannot write {path}: it is a folder: name a file in it")
        with contextlib.suppress(_TriedError), whole_file(path):
            raise _TriedError


def say_written(*paths: Path | None) -> None:
    """Name the files that were asked for."""
    from krakenlm.console import notes

    for path in paths:
        if path is not None:
            notes.print(f"wrote {path}", markup=False)


@contextlib.contextmanager
def progress(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar, and what moves it on by one."""
    from krakenlm.ranks.launch import is_first_process

    if not is_first_process():
        yield lambda: None
        return
    from krakenlm.console import progress_bar

    with progress_bar() as bar:
        task = bar.add_task(what, total=total)
        yield lambda: bar.advance(task)


def command() -> list[str]:
    """What was typed, for reports."""
    return ["krakenlm", *sys.argv[1:]]
