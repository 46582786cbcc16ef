"""A command as a user starts it, on a terminal, for tests that disturb it."""

import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

# Tokens enough that an answer lasts longer than any test.
LONG = 50_000
# From a signal to the end of the last process; nearly all of it is a margin for busy machines.
SECONDS_TO_END = 20


KRAKENLM = ("-m", "krakenlm")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


class Running:
    """A command in a process group of its own, on a terminal (its stderr), stdout in a file.

    ``program`` is what Python runs.
    """

    def __init__(
        self, folder: Path, *arguments: object, program: Sequence[object] = KRAKENLM
    ) -> None:
        self._program = program
        self.temporary = folder / "tmp"
        self.temporary.mkdir(exist_ok=True)
        self._stdout = folder / "stdout"
        master, slave = pty.openpty()
        with self._stdout.open("wb") as stdout:
            self.process = psutil.Popen(
                [sys.executable, *map(str, (*program, *arguments))],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=slave,
                cwd=folder,
                start_new_session=True,
                env={
                    **os.environ,
                    "TMPDIR": str(self.temporary),
                    "TERM": "xterm",
                    "COLUMNS": "200",
                },
            )
        os.close(slave)
        self._terminal = b""
        self._reader = threading.Thread(target=self._read, args=(master,), daemon=True)
        self._reader.start()

    def _read(self, master: int) -> None:
        with contextlib.suppress(OSError), os.fdopen(master, "rb", buffering=0) as terminal:
            while data := terminal.read(4096):
                self._terminal += data

    @property
    def terminal(self) -> str:
        return self._terminal.decode(errors="replace")

    @property
    def out(self) -> str:
        return self._stdout.read_text(encoding="utf-8", errors="replace")

    @property
    def messages(self) -> list[str]:
        """Lines of the terminal without colours, cursor movements and progress."""
        plain = re.sub(r"\x1b\[[?0-9;]*[A-Za-z]", "", self.terminal).replace("\r\n", "\n")
        return [line.rpartition("\r")[2].strip() for line in plain.rstrip("\n").split("\n")]

    def workers(self) -> list[psutil.Process]:
        """Processes that compute or will: no tracker, and none that has others compute."""
        found = []
        for child in self.process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if "spawn_main" in " ".join(child.cmdline()) and not child.children():
                    found.append(child)
        return found

    def wait_for(self, what: Callable[[], object], seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while not what():
            assert self.process.poll() is None, self.terminal
            assert time.monotonic() < end, self.terminal
            time.sleep(0.02)

    def send(self, number: signal.Signals, process: psutil.Process | None = None) -> None:
        """SIGINT to the whole group, as a terminal does on Ctrl-C; others to one process."""
        self._descendants = self.process.children(recursive=True)
        if number == signal.SIGINT:
            os.killpg(self.process.pid, number)
        else:
            (process or self.process).send_signal(number)
        self._sent = time.monotonic()

    def end(self, seconds: float = SECONDS_TO_END) -> int:
        """The exit code, and in ``seconds`` how long that took; nothing outlives the command."""
        code = self.process.wait(seconds)
        limit = time.monotonic() + 5
        while not all(map(_has_ended, self._descendants)):
            assert time.monotonic() < limit, self._descendants
            time.sleep(0.02)
        self.seconds = time.monotonic() - self._sent
        self._reader.join(5)
        if (
            TORCHRUN[1] not in self._program
        ):  # which leaves its logs, and ends with a traceback of its own
            assert list(self.temporary.iterdir()) == []
            assert "Traceback" not in self.terminal, self.terminal
        return int(code)

    def stop(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _has_ended(process: psutil.Process) -> bool:
    """Whether it runs no more, though nobody may have asked for its exit code yet."""
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True
