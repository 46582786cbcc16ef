"""Constants of profiles, each with where it comes from, and the files that hold them."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, Literal, TypeVar

from krakenlm.errors import ConfigError, KrakenError
from krakenlm.strict import from_plain

SCHEMA_VERSION = 1
_T = TypeVar("_T")

Basis = Literal["data sheet", "measured", "fitted", "assumed"]
"""Printed by who sells it; measured; made to fit what was measured; or a guess."""


@dataclass(frozen=True, kw_only=True)
class Constant:
    """A number with its unit in its name.

    Attributes:
        value: the number.
        basis: how it is known.
        source: where it stands, or what it was fitted to.
    """

    value: float
    basis: Basis
    source: str


@dataclass(frozen=True, kw_only=True)
class Table:
    """Measured times.

    Attributes:
        source: where they stand.
        rows_us: each row ends in microseconds; what comes before depends on the table.
    """

    source: str
    rows_us: tuple[tuple[float, ...], ...]


def check_rows(table: Table, width: int, name: str) -> None:
    """Refuse rows of another length, and numbers that are not positive.

    Raises:
        ConfigError: names the row.
    """
    for index, row in enumerate(table.rows_us):
        if len(row) != width or min(row) <= 0.0:
            raise ConfigError(
                f"{name}.rows_us[{index}]={list(row)}: needs {width} positive numbers"
            )


def check_positive(constants: dict[str, Constant], *, may_be_zero: bool = False) -> None:
    """Refuse numbers that no device has.

    Raises:
        ConfigError: names the constant.
    """
    for name, constant in constants.items():
        least_ok = constant.value >= 0.0 if may_be_zero else constant.value > 0.0
        if not (least_ok and constant.value < float("inf")):
            wanted = "0 or more" if may_be_zero else "a positive number"
            raise ConfigError(f"{name}={constant.value:g}: needs {wanted}")


@cache
def names(folder: str) -> tuple[str, ...]:
    """The committed profiles of one kind, ``devices`` or ``links``."""
    found = resources.files("krakenlm.plan") / "profiles" / folder
    return tuple(sorted(p.name.removesuffix(".toml") for p in found.iterdir()))


def read_committed(cls: type[_T], folder: str, name: str) -> _T:
    """One of them.

    Args:
        cls: what it holds.
        folder: its kind.
        name: one of ``names``.
    """
    path = resources.files("krakenlm.plan") / "profiles" / folder / f"{name}.toml"
    return from_plain(cls, tomllib.loads(path.read_text(encoding="utf-8")))


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a profile somebody measured.

    Raises:
        KrakenError: no such file, or not TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise KrakenError(
            f"--profile {path}: there is no such file: give a profile in the form of those in "
            "krakenlm/plan/profiles"
        ) from None
    except OSError as error:
        raise KrakenError(f"--profile {path}: cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise KrakenError(f"--profile {path}: not valid TOML: {error}") from error


def unknown(option: str, given: str, known: Sequence[str], also: str = "") -> KrakenError:
    """An error for a name that does not exist."""
    return KrakenError(f"{option} {given}: choose one of {', '.join(known)}{also}")
