"""Where a result was measured, with what, and on which cores."""

import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Machine, software versions and checkout of a measurement."""

    machine: str
    cores: int
    python: str
    torch: str
    transformers: str
    krakenlm: str
    commit: str

    @classmethod
    def here(cls, cores: int, gpu: str = "") -> "Environment":
        """This machine and this checkout.

        Args:
            cores: how many this process may use.
            gpu: name of the accelerator that was measured; empty where CPUs were.
        """
        processor = _processor()
        return cls(
            machine=f"{gpu} ({processor})" if gpu else processor,
            cores=cores,
            python=platform.python_version(),
            torch=version("torch"),
            transformers=version("transformers"),
            krakenlm=own_version(),
            commit=_commit(),
        )

    def __str__(self) -> str:
        return f"{self.machine}, {self.cores} core{'s' if self.cores > 1 else ''}"


@cache
def cores_here() -> list[int]:
    """The cores this process could use when it was first asked, before it was given its share.

    Numbers that stand for them where the system does not say.
    """
    try:
        return sorted(os.sched_getaffinity(0))
    except AttributeError:  # not on every operating system
        return list(range(os.cpu_count() or 1))


def own_version() -> str:
    """Of krakenlm, as it was installed."""
    try:
        return version("krakenlm")
    except PackageNotFoundError:
        return "not installed"  # a checkout on Python's path: the commit says which


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _commit() -> str:
    """The checkout's commit, ``+`` behind it where it was changed; empty outside a checkout."""
    package = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(package), *arguments],  # noqa: S607  git is found on the path
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", str(package))
        return git("rev-parse", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return ""
