"""Runs steps one after the other within a time limit, and puts down what each has found.

A step is a command with a limit of its own. One that outlasts it is interrupted, as Ctrl-C would,
and killed if that does not end it. After every step its files and ``steps.json`` are in the
output folder, so that a session that is cut short leaves what it has. A step that ended well is
not run again.
"""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import recording
from krakenlm.files import write_json

_GRACE = 8.0  # seconds between the interrupt and the kill
_LOG_BYTES = 2**20  # of one step
_GPU_STATE = (
    *("name", "driver_version", "clocks.sm", "clocks.max.sm", "clocks.mem"),
    *("power.draw", "power.limit", "temperature.gpu"),
)


@dataclass(frozen=True)
class Step:
    """One command.

    Attributes:
        name: of its log and its entry in ``steps.json``.
        command: the program and its arguments.
        limit: seconds that it may take.
        least: it is not begun with fewer seconds left.
        keep: files that it makes, by the name that they get in the output folder.
        again: it is run again where it has ended well before, since there is more for it to do.
    """

    name: str
    command: Sequence[str]
    limit: float
    least: float = 1.0
    keep: Mapping[str, Path] = field(default_factory=dict)
    again: bool = False


class Running:
    """A step that has begun."""

    def __init__(self, step: Step, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self.step = step
        self.begun = time.monotonic()
        self.gpu = gpu_state()
        self._process = process
        self._log = log

    def end(self, limit: float) -> str:
        """Wait so many seconds at most; say how it ended: ``ended``, ``failed``, ``cut short``."""
        try:
            code = self._process.wait(max(limit, 0.0))
        except subprocess.TimeoutExpired:
            self.interrupt()
            return "cut short"
        except KeyboardInterrupt:
            self.interrupt()
            raise
        finally:
            self._signal(signal.SIGKILL)  # what the command left running
            self._process.wait()
            self._log.close()
        return f"failed with {code}" if code else "ended"

    def interrupt(self) -> None:
        """Ask it to put down what it has."""
        self._signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_GRACE)

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


class Session:
    """Steps within one time limit.

    Args:
        out: for what is found, few files, none in a folder of its own.
        work: for all else; a later session in the same folder goes on there.
        seconds: for all steps together.
        environment: what commands have beside this process's own.
    """

    def __init__(
        self, out: Path, work: Path, seconds: float, environment: Mapping[str, str]
    ) -> None:
        self._out, self._work = out, work
        self._deadline = time.monotonic() + seconds
        self._environment = {**os.environ, **environment}
        out.mkdir(parents=True, exist_ok=True)
        work.mkdir(parents=True, exist_ok=True)
        self._kept = work / "steps.json"
        self._where = recording.environment(gpu_state().get("name", ""))
        self._steps: dict[str, Any] = {}
        with suppress(FileNotFoundError):
            self._steps = json.loads(self._kept.read_text(encoding="utf-8"))["steps"]
        (out / "log.txt").write_bytes(b"")
        for name in self._steps:
            self._append_log(name)

    @property
    def left(self) -> float:
        """Seconds until the session ends, with what a step needs to be ended in."""
        return self._deadline - time.monotonic() - _GRACE

    def seconds_of(self, name: str) -> float:
        """That a step took which ended well; infinitely many where none did."""
        step = self._steps.get(name, {})
        return float(step["seconds"]) if step.get("outcome") == "ended" else float("inf")

    def begin(self, step: Step) -> Running | None:
        """Start a step, unless it has ended well already or too little time is left for it."""
        if self._steps.get(step.name, {}).get("outcome") == "ended" and not step.again:
            print(f"{step.name}: done already", flush=True)
            self._collect(step)
            return None
        if self.left < step.least:
            self._note(step, f"not begun, {max(self.left, 0):.0f} s were left", 0.0)
            return None
        log = (self._work / f"{step.name}.log").open("wb")
        try:
            process = subprocess.Popen(
                list(step.command),
                cwd=recording.ROOT,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env=self._environment,
                start_new_session=True,
            )
        except BaseException:
            log.close()
            raise
        return Running(step, process, log)

    def end(self, running: Running | None) -> None:
        """Wait for a step within its limit and the session's, and put down what it found."""
        if running is None:
            return
        step = running.step
        outcome = "cut short"
        try:
            spent = time.monotonic() - running.begun
            outcome = running.end(min(step.limit - spent, self.left))
        except KeyboardInterrupt:
            outcome = "interrupted"
            raise
        finally:
            seconds = time.monotonic() - running.begun
            self._note(step, outcome, seconds, gpu_before=running.gpu, gpu_after=gpu_state())
            self._append_log(step.name)
            self._collect(step)

    def run(self, step: Step) -> None:
        """Begin and end one step."""
        self.end(self.begin(step))

    def _note(self, step: Step, outcome: str, seconds: float, **more: Any) -> None:
        print(f"{step.name}: {outcome}, {seconds:.0f} s", flush=True)
        shown = [Path(word).name if word.startswith("/") else word for word in step.command]
        self._steps[step.name] = {
            "command": " ".join(shown),
            "outcome": outcome,
            "seconds": round(seconds, 1),
            **more,
        }
        found = {"schema_version": 1, "steps": self._steps, **self._where}
        for target in (self._kept, self._out / "steps.json"):
            write_json(target, found)

    def _append_log(self, name: str) -> None:
        """The end of a step's output goes to the one log."""
        source = self._work / f"{name}.log"
        if not source.is_file():
            return
        with (self._out / "log.txt").open("ab") as log:
            log.write(f"{name}\n".encode() + source.read_bytes()[-_LOG_BYTES:] + b"\n")

    def _collect(self, step: Step) -> None:
        for name, source in step.keep.items():
            if source.is_file():
                shutil.copyfile(source, self._out / name)


def gpu_state() -> dict[str, str]:
    """The first GPU's name, clocks, power and temperature; nothing where there is none."""
    query = ["nvidia-smi", "--id=0", "--format=csv,noheader", f"--query-gpu={','.join(_GPU_STATE)}"]
    with suppress(OSError, subprocess.SubprocessError):
        ended = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
        return dict(zip(_GPU_STATE, map(str.strip, ended.stdout.split(",")), strict=False))
    return {}
