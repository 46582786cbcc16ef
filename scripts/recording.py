"""What all scripts that measure have in common: commands run and kept, then pages filled from that.

A folder of results holds what its commands wrote, and ``steps.json``: each command as a reader
would give it, how many seconds it took, and on what machine. Pages show nothing but such files.
"""

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import markers
from krakenlm.environment import Environment, cores_here
from krakenlm.files import write_json

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS = DOCS / "results"
KRAKENLM = (sys.executable, "-m", "krakenlm")


@dataclass(frozen=True)
class Ended:
    """A command that ran: its exit code, what it printed, and the seconds it took."""

    code: int
    output: str
    seconds: float


def run(
    command: Sequence[str | Path],
    *,
    folder: Path = ROOT,
    environment: Mapping[str, str] | None = None,
    log: Path | None = None,
) -> Ended:
    """Run a command and wait for it.

    Args:
        command: the program and its arguments.
        folder: where it runs.
        environment: what it has beside this process's own.
        log: gets all that the command says, as it says it; without one, its errors are shown and
            its output is returned.
    """
    start = time.monotonic()
    with nullcontext(subprocess.PIPE) if log is None else log.open("wb") as output:
        ended = subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env={**os.environ, **(environment or {})},
            stdout=output,
            stderr=None if log is None else subprocess.STDOUT,
            text=True,
            check=False,
        )
    return Ended(ended.returncode, ended.stdout or "", time.monotonic() - start)


class Record:
    """The commands behind a folder of results, kept in its ``steps.json`` as they end.

    Args:
        results: the folder; made if it is not there.
        folder: where the commands run.
        more: goes into ``steps.json`` as well.
    """

    def __init__(self, results: Path, folder: Path, **more: Any) -> None:
        results.mkdir(parents=True, exist_ok=True)
        self.results = results
        self.folder = folder
        self._more = {**more, **environment()}
        self._steps: list[dict[str, Any]] = []

    def run(
        self,
        name: str,
        command: Sequence[str | Path],
        shown: str,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run one command and return its output, which is printed too.

        Args:
            name: what the command is for.
            command: the program and its arguments.
            shown: the command as a reader would give it; folders of this machine say nothing.
            environment: what it has beside this process's own.

        Raises:
            SystemExit: the command failed; its own message stands above.
        """
        print(f"{name}: {shown}", flush=True)
        ended = run(command, folder=self.folder, environment=environment)
        print(ended.output, end="", flush=True)
        if ended.code:
            sys.exit(f"{name} ended with {ended.code}, see above: {shown}")
        self._steps.append({"step": name, "command": shown, "seconds": round(ended.seconds, 1)})
        self.note()
        return ended.output

    def krakenlm(
        self,
        name: str,
        arguments: str,
        files: Mapping[str, Path] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> str:
        """Run one of the package's own commands, as ``run`` does.

        Args:
            name: what the command is for.
            arguments: what follows ``krakenlm``, apart by blanks.
            files: words among them that stand for a file of this machine; its name is shown.
            environment: what it has beside this process's own.
        """
        words = arguments.split()
        given = [str(files[word].resolve()) if files and word in files else word for word in words]
        shown = [files[word].name if files and word in files else word for word in words]
        command = [*KRAKENLM, *given]
        return self.run(name, command, " ".join(["krakenlm", *shown]), environment)

    def note(self, **more: Any) -> None:
        """Write ``steps.json`` with what has ended so far, and more."""
        self._more |= more
        steps = {"schema_version": 1, "steps": self._steps}
        write_json(self.results / "steps.json", {**steps, **self._more})


def environment(gpu: str = "") -> dict[str, Any]:
    """What every file of results says about where it was measured."""
    return {"environment": asdict(Environment.here(len(cores_here()), gpu))}


def option_parser(description: str | None) -> argparse.ArgumentParser:
    """A script's parser, which knows ``--draw``; the first line of its docstring describes it."""
    parser = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--draw", action="store_true", help="measure nothing, draw what is there")
    either.add_argument("--measure-only", action="store_true", help="leave pages as they are")
    return parser


def add_scenarios(parser: argparse.ArgumentParser, scenarios: Iterable[str]) -> None:
    """Let a script's user name some of its scenarios; none stands for all."""
    names = list(scenarios)

    def known(name: str) -> str:
        if name not in names:
            listed = ", ".join(names)
            raise argparse.ArgumentTypeError(f"no scenario {name}: choose from {listed}")
        return name

    parser.add_argument(
        "scenarios", nargs="*", metavar="SCENARIO", type=known, help=", ".join(names)
    )


def measure_and_draw(
    parser: argparse.ArgumentParser,
    measure: Callable[[argparse.Namespace], None],
    *,
    pages: Iterable[Path],
    tables: Mapping[str, markers.Table],
    pictures: Callable[[argparse.Namespace], None] | None = None,
    needed: Sequence[str] = (),
) -> None:
    """Measure, then draw pictures and fill pages; ``--draw`` and ``--measure-only`` do one of them.

    Args:
        parser: of ``option_parser``, with the script's own options.
        measure: writes files of results.
        pages: have markers for the tables.
        tables: read files of results.
        pictures: draws from files of results.
        needed: options without which nothing can be measured.
    """
    options = parser.parse_args()
    missing = [f"--{name}" for name in needed if not getattr(options, name)]
    if missing and not options.draw:
        parser.error(f"{' and '.join(missing)} needed to measure; --draw measures nothing")
    if not options.draw:
        measure(options)
    if options.measure_only:
        return
    if pictures is not None:
        pictures(options)
    markers.rewrite(pages, tables)
