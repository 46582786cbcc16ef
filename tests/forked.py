"""``krakenlm`` in processes forked from one that has imported everything already.

An import takes seconds of a core, more than most of what tests disturb.
"""

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Sequence
from multiprocessing.connection import wait
from pathlib import Path

from krakenlm.cli.main import main
from ports import free_port

PRELOADED = ["forked", "krakenlm.train.trainer"]


class Forked:
    """One command in processes that find each other as torchrun's do.

    Args:
        folder: where they run; what they say is in its log.txt.
        count: of processes.
        arguments: of ``krakenlm``.
        program: what runs in place of ``krakenlm``.
    """

    def __init__(
        self, folder: Path, count: int, arguments: Sequence[str], program: Path | None = None
    ) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        of_all = {
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        self._processes = []
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            environment = of_all | own if count > 1 else {}
            process = context.Process(
                target=_run, args=(folder, environment, list(arguments), program)
            )
            process.start()
            self._processes.append(process)

    def wait(self, seconds: float) -> int | None:
        """The exit code, not 0 if one is not; None where they go on."""
        end = time.monotonic() + seconds
        waiting = [process.sentinel for process in self._processes]
        while waiting and (ended := wait(waiting, max(0, end - time.monotonic()))):
            waiting = [sentinel for sentinel in waiting if sentinel not in ended]
        codes = [process.exitcode for process in self._processes]
        return None if None in codes else max(codes, key=abs)

    def kill(self, victim: int, seconds: float) -> None:
        """SIGKILL to one; the others hear SIGTERM, as from torchrun, and end by themselves."""
        victim %= len(self._processes)
        self._processes[victim].kill()
        self._processes[victim].join()
        for process in self._processes:
            process.terminate()
        assert self.wait(seconds) is not None

    def stop(self) -> None:
        for process in self._processes:
            process.kill()
            process.join()


def _run(
    folder: Path, environment: dict[str, str], arguments: list[str], program: Path | None
) -> None:
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(log, stream)
    os.environ.update(environment)
    if program is None:
        main(arguments)
        return
    sys.argv[1:] = arguments
    runpy.run_path(str(program), run_name="__main__")
