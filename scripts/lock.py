"""Which versions the tests passed with: written as pip constraints, or shown for this environment.

``constraints/package.txt`` holds everything that the package, its tests and its documentation
install, ``constraints/vllm.txt`` what stands beside vLLM. Each is made from a fresh environment of
the newest versions that ``pyproject.toml`` allows, after all tests have passed there; where one
fails, the file stays as it is.

Usage: python scripts/lock.py [package|vllm ...]     both, without a name; half an hour
       PYTHON scripts/lock.py --show                 the versions of PYTHON's environment
       python scripts/lock.py --lowest               lower bounds of pyproject.toml, as constraints
"""

import argparse
import datetime
import platform
import re
import shutil
import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONSTRAINTS = ROOT / "constraints"
FRESH = ".lock"
EXTRAS = "data,eval,dev,docs,tensorboard,wandb"

# What `make` runs for each file; the variables put it into an environment without a lock.
RUNS = {
    "package": ["check", "test", "docs", f"VENV={FRESH}/package", f"EXTRAS={EXTRAS}"],
    "vllm": ["test-vllm", f"VLLM_VENV={FRESH}/vllm"],
}


def main() -> None:
    """Lock, or show."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("names", nargs="*", metavar="package|vllm", help="which; both by default")
    parser.add_argument("--show", action="store_true", help="versions of this environment")
    parser.add_argument("--lowest", action="store_true", help="lower bounds as constraints")
    arguments = parser.parse_args()
    if arguments.lowest:
        print("\n".join(lowest()))
        return
    if unknown := set(arguments.names) - RUNS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: choose from {', '.join(RUNS)}")
    if arguments.show:
        show()
        return
    for name in arguments.names or RUNS:
        lock(name)


def lock(name: str) -> None:
    """Run the tests in a fresh environment and keep what is installed there."""
    environment = ROOT / FRESH / name
    shutil.rmtree(environment, ignore_errors=True)
    command = ["make", *RUNS[name], "LOCK="]
    if subprocess.run(command, cwd=ROOT, check=False).returncode:
        sys.exit(
            f"lock.py: {' '.join(command)} failed: constraints/{name}.txt stays as it was, and "
            f"{FRESH}/{name} is there to be looked at"
        )
    python = environment / "bin" / "python"
    freeze = [str(python), "-m", "pip", "freeze", "--exclude-editable"]
    frozen = subprocess.run(freeze, capture_output=True, text=True, check=True).stdout
    target = CONSTRAINTS / f"{name}.txt"
    target.parent.mkdir(exist_ok=True)
    target.write_text(constraints(name, frozen), encoding="utf-8")
    print(f"written: {target.relative_to(ROOT)}")


def constraints(name: str, frozen: str) -> str:
    """What pip reads, with the day and the machine in its head.

    Local versions go without their label: ``torch==2.13.0`` is any build of 2.13.0.
    """
    pins = [re.sub(r"\+.*", "", line) for line in frozen.splitlines() if "==" in line]
    day = datetime.datetime.now(tz=datetime.UTC).date()
    head = (
        f"# `make {RUNS[name][0]}` was green with these on {day}, Python "
        f"{platform.python_version()}, {platform.system()} {platform.machine()}.\n"
        "# Made by `make lock`; docs/development.md says when.\n"
    )
    return head + "\n".join(pins) + "\n"


def lowest() -> list[str]:
    """Each library of the package and its extras at its lower bound, as pip's constraints."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    asked = [*project["dependencies"], *(line for extra in extras for line in extra)]
    return [re.sub(r">=([^,]+),.*", r"==\1", line) for line in asked]


def show() -> None:
    """A line for each library that pyproject.toml names: here, locked, allowed."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    lines = (CONSTRAINTS / "package.txt").read_text(encoding="utf-8").splitlines()
    pins = [line.split("==") for line in lines if not line.startswith("#")]
    locked = {canonicalize_name(name): pinned for name, pinned in pins}
    print(f"{'library':22}{'here':14}{'locked':14}allowed")
    for text in requires("krakenlm") or ():
        requirement = Requirement(text)
        try:
            here = version(requirement.name)
        except PackageNotFoundError:
            continue
        known = locked.get(canonicalize_name(requirement.name), "")
        print(f"{requirement.name:22}{here:14}{known:14}{requirement.specifier}")


if __name__ == "__main__":
    main()
