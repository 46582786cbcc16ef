"""Outputs that appear whole or not at all, and folders that one process holds."""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout, lock_descriptor

from krakenlm.errors import DiskFullError, KrakenError

LOCK = ".lock"
"""The file in a folder by which a process holds it; nothing else of ours has that name."""


@contextmanager
def whole_directory(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside ``target`` that becomes ``target`` when the block succeeds.

    On any exception, Ctrl-C included, the folder is removed, with the folders above it that were
    not there before, and ``target`` stays as it was.

    Raises:
        KrakenError: ``target`` exists and ``replace`` is false, or the disk refuses.
    """
    shown, target = target, Path(target).resolve()
    _refuse_what_is_there(shown, target, replace)
    with _folders_above(target):
        with _refusals(target):
            partial = Path(tempfile.mkdtemp(prefix=f".{target.name}-partial-", dir=target.parent))
        try:
            partial.chmod(0o755)
            with disk_errors(target):
                yield partial
                _put_in_place(partial, target)
        except BaseException:
            shutil.rmtree(partial, ignore_errors=True)
            raise


@contextmanager
def resumable_directory(
    target: Path, *, worth_keeping: Callable[[Path], bool], replace: bool = False
) -> Iterator[Path]:
    """Like ``whole_directory``, but the next try may find what an interrupted one finished.

    The folder is ``unfinished(target)``, with what an earlier block left in it.

    Args:
        target: what the folder becomes when the block succeeds.
        worth_keeping: whether to leave the folder to the next try, asked on any exception.
        replace: whether ``target`` may exist.

    Raises:
        KrakenError: ``target`` exists and ``replace`` is false, the disk refuses, or another
            process is making it.
    """
    shown, target = target, Path(target).resolve()
    _refuse_what_is_there(shown, target, replace)
    partial = unfinished(target)
    busy = (
        f"{partial} is being written by another krakenlm: wait for it to end, or choose another "
        "output folder"
    )
    with _folders_above(target):
        with _refusals(target):
            partial.mkdir(exist_ok=True)
        with hold(partial, busy):
            try:
                # While this one waited for the lock, who had it may have made the target.
                _refuse_what_is_there(shown, target, replace)
                with disk_errors(target):
                    yield partial
                    _put_in_place(partial, target)
                    (target / LOCK).unlink(missing_ok=True)
            except BaseException:
                if not worth_keeping(partial):
                    shutil.rmtree(partial, ignore_errors=True)
                raise


def unfinished(target: Path) -> Path:
    """Where ``resumable_directory`` keeps what is to become ``target``."""
    target = Path(target).resolve()
    return target.with_name(f"{target.name}.unfinished")


@contextmanager
def hold(folder: Path, busy: str) -> Iterator[bool]:
    """Hold a folder against other processes; the system lets go of it when this one ends.

    Yields whether it is: on a file system without locks nobody is kept out. A file that keeps
    others out by being there would not do instead, since nobody removes it for a machine that died.

    Raises:
        KrakenError: ``busy``, where another process holds it, or the disk refuses.
    """
    # Who only looks, in ``is_held``, has the lock for a moment: that is waited for.
    lock = FileLock(folder / LOCK, timeout=0.5, fallback_to_soft=False)
    with _refusals(folder):
        here = folder.stat()
        try:
            lock.acquire()
        except (Timeout, FileNotFoundError):  # at the end it may have been renamed
            raise KrakenError(busy) from None
        except OSError as error:
            if error.errno not in _WITHOUT_LOCKS:
                raise
    try:
        yield lock.is_locked
    finally:
        with suppress(OSError):  # renamed or removed meanwhile, with another in its place perhaps
            if os.path.samestat(here, folder.stat()):
                (folder / LOCK).unlink()
        lock.release()


def is_held(folder: Path) -> bool:
    """Whether a process on this machine, or on one that shares its locks, holds the folder."""
    # NFS locks only what may be written, and the run of another user may only be read.
    for mode in (os.O_RDWR, os.O_RDONLY):
        with suppress(OSError):
            handle = os.open(folder / LOCK, mode)
            try:
                return not lock_descriptor(handle, blocking=False)
            finally:
                os.close(handle)
    return False


@contextmanager
def whole_file(target: Path) -> Iterator[Path]:
    """Yield an empty file beside ``target``, of its suffix, that becomes it at the block's end.

    A reader sees the old content or all of the new one. When the block fails, the folders above it
    that were not there before go as well.
    """
    target = Path(target)
    with _refusals(target), _folders_above(target):
        handle, name = tempfile.mkstemp(
            prefix=f".{target.name}-partial-", suffix=target.suffix, dir=target.parent
        )
        os.close(handle)
        partial = Path(name)
        try:
            yield partial
            partial.chmod(0o644)
            partial.replace(target)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def write_whole(target: Path, text: str) -> None:
    """Write a text file, whole or not at all."""
    with whole_file(target) as partial:
        partial.write_text(text, encoding="utf-8")


def sync(path: Path) -> None:
    """Return once a file's content, or a folder's list of names, outlives a loss of power.

    Some file systems cannot do that for folders; then it is left to them.
    """
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(handle)


def sync_folder(folder: Path) -> None:
    """The same for all that lies in a folder."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def write_json(target: Path, value: Any) -> None:
    """Write ``value`` as indented JSON, whole or not at all."""
    write_whole(target, as_json(value))


@contextmanager
def json_file(target: Path | None) -> Iterator[Callable[[Any], object]]:
    """Yield what writes a value to ``target`` as JSON at the block's end; nothing without one.

    Where ``target`` cannot be written is said before the block spends time on making the value.
    """
    if target is None:
        yield lambda value: None
        return
    with whole_file(target) as partial:
        yield lambda value: partial.write_text(as_json(value), encoding="utf-8")


def as_json(value: Any) -> str:
    """``value`` as the indented JSON of all our files."""
    return json.dumps(value, indent=2) + "\n"


@contextmanager
def disk_errors(target: Path) -> Iterator[None]:
    """Turn the operating system's refusals to write ``target`` into a message for people."""
    try:
        yield
    except Exception as error:
        number = _errno_of(error, target) or 0
        if number not in _WRITE_REFUSALS:
            raise
        refusal = DiskFullError if number in _FULL else KrakenError
        raise refusal(f"cannot write {target}: {_WRITE_REFUSALS[number]}") from error


def _refuse_what_is_there(shown: Path, target: Path, replace: bool) -> None:
    if target.exists() and not replace and (not target.is_dir() or any(target.iterdir())):
        raise KrakenError(f"{shown} exists already: remove it or choose another output folder")
    if target.is_mount():
        raise KrakenError(f"{shown} is a mount point: choose a folder within it")


@contextmanager
def _refusals(target: Path) -> Iterator[None]:
    """Like ``disk_errors``, where whatever the system refuses is about ``target``."""
    try:
        with disk_errors(target):
            yield
    except OSError as error:
        reason = f"{error.strerror}: choose another output folder"
        raise KrakenError(f"cannot write {target}: {reason}") from error


@contextmanager
def _folders_above(target: Path) -> Iterator[None]:
    """Make the folders that ``target`` is to be in; take them away again when the block fails."""
    with _refusals(target):
        missing = [folder for folder in target.parents if not folder.exists()]
    try:
        with _refusals(target):
            target.parent.mkdir(parents=True, exist_ok=True)
        yield
    except BaseException:
        for folder in missing:
            with suppress(OSError):  # never made, or something else is in it by now
                folder.rmdir()
        raise


_WRITE_REFUSALS = {
    errno.ENOSPC: "no space left on the disk: free some or choose another output folder",
    errno.EDQUOT: "the disk quota is used up: free some or choose another output folder",
    errno.EACCES: "permission denied: choose a folder you may write to",
    errno.EROFS: "the file system is read-only: choose another output folder",
    errno.ENOTDIR: "a part of this path is a file: choose another output folder",
    errno.EEXIST: "a part of this path is a file: choose another output folder",
}


_FULL = (errno.ENOSPC, errno.EDQUOT)
_WITHOUT_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)

_PROBE_BYTES = 1 << 20


def _errno_of(error: Exception, target: Path) -> int | None:
    """The system's number of what went wrong while ``target`` was written."""
    if isinstance(error, OSError):
        return error.errno
    if isinstance(error, KrakenError):
        return None
    # Rust, in which safetensors is written, ends the system's errors with their number.
    number = re.search(r"\(os error (\d+)\)", str(error))
    # Where it is lost, as in torch.save, the system is asked again.
    return int(number[1]) if number else _refused(target)


def _refused(target: Path) -> int | None:
    """The number by which the system refuses one more small file beside or in ``target``."""
    folder = next(folder for folder in (target, *target.parents) if folder.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as probe:
            probe.write(bytes(_PROBE_BYTES))
            probe.flush()
            os.fsync(probe.fileno())  # a quota may show only here
    except OSError as error:
        return error.errno
    return None


def _put_in_place(partial: Path, target: Path) -> None:
    """Rename, what was there moved aside first: removing takes time and may be interrupted."""
    if not target.exists() or (target.is_dir() and not any(target.iterdir())):
        partial.replace(target)
        return
    old = Path(f"{partial}-old")
    target.replace(old)
    try:
        partial.replace(target)
    except BaseException:
        old.replace(target)
        raise
    try:
        _remove(old)
    except BaseException:
        shutil.rmtree(old, ignore_errors=True)
        raise


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()
