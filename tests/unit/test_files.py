"""Outputs appear whole or not at all, and what was there stays until they do."""

import errno
import fcntl
import os
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest

import tiny
from krakenlm import files
from krakenlm.errors import KrakenError
from krakenlm.files import (
    LOCK,
    disk_errors,
    hold,
    is_held,
    json_file,
    resumable_directory,
    whole_directory,
    whole_file,
    write_json,
    write_whole,
)


class Stop(BaseException):
    """Like KeyboardInterrupt, no Exception."""


def test_a_directory_appears_at_the_end_of_the_block(tmp_path):
    target = tmp_path / "a" / "out"
    with whole_directory(target) as folder:
        (folder / "file").write_text("text")
        assert folder.parent == target.parent and not target.exists()
    assert tiny.snapshot(tmp_path) == {"a": None, "a/out": None, "a/out/file": b"text"}
    assert stat.S_IMODE(target.stat().st_mode) == 0o755


@pytest.mark.parametrize("error", [Stop, KeyboardInterrupt, ValueError, KrakenError])
@pytest.mark.parametrize("exists", [False, True])
def test_an_exception_leaves_everything_as_it_was(tmp_path, error, exists):
    target = tmp_path / "out"
    if exists:
        target.mkdir()
        (target / "old").write_text("old")
    before = tiny.snapshot(tmp_path)
    with pytest.raises(error), whole_directory(target, replace=True) as folder:
        (folder / "file").write_text("text")
        raise error
    assert tiny.snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "output",
    [
        whole_file,
        whole_directory,
        lambda target: resumable_directory(target, worth_keeping=lambda partial: False),
    ],
    ids=["file", "directory", "resumable directory"],
)
def test_folders_made_for_an_output_go_with_it(tmp_path, output):
    (tmp_path / "a").mkdir()
    with pytest.raises(Stop), output(tmp_path / "a" / "b" / "c" / "out"):
        raise Stop
    assert tiny.snapshot(tmp_path) == {"a": None}
    with pytest.raises(Stop), output(tmp_path / "a" / "b" / "c" / "out"):
        (tmp_path / "a" / "b" / "other").write_text("of another process")
        raise Stop
    assert tiny.snapshot(tmp_path) == {"a": None, "a/b": None, "a/b/other": b"of another process"}


def test_what_is_there_is_replaced_only_when_asked(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(KrakenError, match="exists already"), whole_directory(target):
        pytest.fail("the block must not run")
    with whole_directory(target, replace=True) as folder:
        (folder / "new").write_text("new")
    assert tiny.snapshot(tmp_path) == {"out": None, "out/new": b"new"}


def test_an_empty_directory_is_taken(tmp_path):
    (tmp_path / "out").mkdir()
    with whole_directory(tmp_path / "out") as folder:
        (folder / "new").write_text("new")
    assert tiny.snapshot(tmp_path) == {"out": None, "out/new": b"new"}


@pytest.mark.parametrize("call", [1, 2])
def test_an_interruption_between_old_and_new_keeps_the_old(tmp_path, monkeypatch, call):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")
    before = tiny.snapshot(tmp_path)
    calls = []
    rename = Path.replace

    def interrupted(self, other):
        calls.append(other)
        if len(calls) == call:
            raise Stop
        return rename(self, other)

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(Stop), whole_directory(target, replace=True) as folder:
        (folder / "new").write_text("new")
    assert tiny.snapshot(tmp_path) == before


def test_an_interruption_while_the_old_is_removed_keeps_the_new(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").write_text("old")

    def interrupted(path):
        raise Stop

    monkeypatch.setattr(files, "_remove", interrupted)
    with pytest.raises(Stop), whole_directory(target, replace=True) as folder:
        (folder / "new").write_text("new")
    assert tiny.snapshot(tmp_path) == {"out": None, "out/new": b"new"}


@pytest.mark.parametrize("error", [Stop, ValueError])
def test_a_file_is_old_or_new(tmp_path, error):
    target = tmp_path / "picture.png"
    target.write_text("old")
    with pytest.raises(error), whole_file(target) as partial:
        assert partial.suffix == ".png"
        partial.write_text("half")
        assert target.read_text() == "old"
        raise error
    assert tiny.snapshot(tmp_path) == {"picture.png": b"old"}
    with whole_file(target) as partial:
        partial.write_text("new")
    assert tiny.snapshot(tmp_path) == {"picture.png": b"new"}
    assert stat.S_IMODE(target.stat().st_mode) == 0o644


def test_text_and_json(tmp_path):
    write_whole(tmp_path / "a" / "text", "été\n")
    write_json(tmp_path / "a" / "values.json", {"b": [1, 2]})
    assert tiny.snapshot(tmp_path) == {
        "a": None,
        "a/text": "été\n".encode(),
        "a/values.json": b'{\n  "b": [\n    1,\n    2\n  ]\n}\n',
    }
    with pytest.raises(TypeError):
        write_json(tmp_path / "a" / "values.json", object())
    assert len(tiny.snapshot(tmp_path)) == 3


def test_where_json_cannot_be_written_is_said_before_there_is_any(tmp_path):
    (tmp_path / "file").write_text("in the way")
    target = tmp_path / "file" / "values.json"
    with pytest.raises(KrakenError, match="a part of this path is a file"), json_file(target):
        pytest.fail("the block must not run")
    with pytest.raises(Stop), json_file(tmp_path / "values.json"):
        raise Stop
    with json_file(None) as write:
        write({"nobody": "asked"})
    assert tiny.snapshot(tmp_path) == {"file": b"in the way"}
    with json_file(tmp_path / "values.json") as write:
        write({"b": [1, 2]})
    assert (tmp_path / "values.json").read_text() == files.as_json({"b": [1, 2]})


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.ENOSPC, "x"), "no space left"),
        (OSError(errno.EDQUOT, "x"), "quota"),
        (PermissionError(errno.EACCES, "x"), "permission denied"),
        (OSError(errno.EROFS, "x"), "read-only"),
        (NotADirectoryError(errno.ENOTDIR, "x"), "is a file"),
        (Exception("I/O error: No space left on device (os error 28)"), "no space left"),
    ],
)
def test_refusals_to_write_are_for_people(tmp_path, error, said):
    with pytest.raises(KrakenError, match=said) as caught, disk_errors(tmp_path / "out"):
        raise error
    assert str(tmp_path / "out") in str(caught.value)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize(
    ("number", "said"), [(errno.ENOSPC, "no space left"), (errno.EDQUOT, "quota")]
)
def test_the_disk_is_asked_where_an_error_does_not_tell(tmp_path, monkeypatch, number, said):
    def refuse(handle):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", refuse)
    target = tmp_path / "not" / "made" / "out"
    with pytest.raises(KrakenError, match=f"cannot write {target}: .*{said}"), disk_errors(target):
        raise RuntimeError("a library's own words")
    with pytest.raises(KrakenError, match=r"^said already$"), disk_errors(target):
        raise KrakenError("said already")
    assert tiny.snapshot(tmp_path) == {}


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EIO, "x"),
        RuntimeError("[enforce fail at x.cc:1] . unexpected pos 64 vs 0"),
        Exception("I/O error: Input/output error (os error 5)"),
        ValueError("position 3 vs 4"),
        KrakenError("said already"),
        Stop(),
    ],
    ids=repr,
)
def test_other_errors_stay_what_they_are(tmp_path, error):
    with pytest.raises(type(error)) as caught, disk_errors(tmp_path):
        raise error
    assert caught.value is error


def test_a_folder_is_held_by_one_and_nothing_is_left(tmp_path):
    assert not is_held(tmp_path / "not there") and not is_held(tmp_path)
    with hold(tmp_path, "in use: wait") as held:
        assert held and is_held(tmp_path)
        with pytest.raises(KrakenError, match=r"^in use: wait$"), hold(tmp_path, "in use: wait"):
            pytest.fail("the block must not run")
        assert is_held(tmp_path)
    assert not is_held(tmp_path)
    assert tiny.snapshot(tmp_path) == {}


def test_who_only_looks_at_a_folder_keeps_nobody_from_it(tmp_path):
    looking = os.open(tmp_path / LOCK, os.O_CREAT | os.O_RDWR)
    fcntl.flock(looking, fcntl.LOCK_EX)
    threading.Timer(0.1, os.close, [looking]).start()
    with hold(tmp_path, "in use"):
        assert is_held(tmp_path)


def test_a_lock_ends_with_a_killed_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from krakenlm.files import hold\n"
        "with hold(Path(sys.argv[1]), 'in use'): print('held', flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout.readline() == b"held\n"
            assert is_held(tmp_path)
        finally:
            process.kill()
    assert (tmp_path / LOCK).exists() and not is_held(tmp_path)
    with hold(tmp_path, "in use"):
        assert is_held(tmp_path)
    assert not (tmp_path / LOCK).exists()


def test_a_lock_that_may_only_be_read_tells_all_the_same(tmp_path, monkeypatch):
    """As in the run of another user."""
    really = os.open

    def open_(path, flags, *rest, **keywords):
        if flags & os.O_RDWR:
            raise PermissionError(errno.EACCES, "Permission denied")
        return really(path, flags, *rest, **keywords)

    with hold(tmp_path, "in use"), monkeypatch.context() as patch:
        patch.setattr(os, "open", open_)
        assert is_held(tmp_path)
    (tmp_path / LOCK).touch()
    monkeypatch.setattr(os, "open", open_)
    assert not is_held(tmp_path)


def test_the_lock_of_a_folder_that_was_replaced_is_left_alone(tmp_path):
    (tmp_path / "run").mkdir()
    with hold(tmp_path / "run", "in use"):
        (tmp_path / "run").rename(tmp_path / "moved")
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / LOCK).write_text("of another process")
    assert (tmp_path / "run" / LOCK).read_text() == "of another process"
    assert not is_held(tmp_path / "moved")


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_taken_as_it_is(tmp_path, monkeypatch, number):
    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refused)
    with hold(tmp_path, "in use") as held:
        assert not held and not is_held(tmp_path)
    assert tiny.snapshot(tmp_path) == {}


def test_a_folder_that_may_not_be_written_to_is_not_held(tmp_path, monkeypatch):
    def refused(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(fcntl, "flock", refused)
    said = f"cannot write {tmp_path}: the file system is read-only"
    with pytest.raises(KrakenError, match=said), hold(tmp_path, "in use"):
        pytest.fail("the block must not run")


@pytest.mark.parametrize("fails", [False, True])
def test_a_finished_directory_has_no_lock_in_it(tmp_path, fails):
    """Nor has one that is kept for the next try, which takes it as it is."""
    out = tmp_path / "out"
    kept = resumable_directory(out, worth_keeping=lambda _: True)
    with pytest.raises(Stop) if fails else nullcontext(), kept as partial:
        (partial / "file").write_text("text")
        assert is_held(partial)
        again = resumable_directory(out, worth_keeping=lambda _: True)
        with pytest.raises(KrakenError, match="is being written by another krakenlm"), again:
            pytest.fail("the block must not run")
        if fails:
            raise Stop
    name = "out.unfinished" if fails else "out"
    assert tiny.snapshot(tmp_path) == {name: None, f"{name}/file": b"text"}


def test_what_another_process_finished_meanwhile_is_not_replaced(tmp_path, monkeypatch):
    """Seen when the lock is had, which may be a while after the first look."""
    out = tmp_path / "out"

    @contextmanager
    def slow(folder, busy):
        out.mkdir()
        (out / "theirs").write_text("whole")
        with hold(folder, busy) as held:
            yield held

    monkeypatch.setattr(files, "hold", slow)
    late = resumable_directory(out, worth_keeping=lambda _: False)
    with pytest.raises(KrakenError, match="exists already"), late:
        pytest.fail("the block must not run")
    assert tiny.snapshot(tmp_path) == {"out": None, "out/theirs": b"whole"}
