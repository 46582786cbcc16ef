"""Plain values into dataclasses, strictly: what does not fit is named, never half understood.

Configurations, recipes, manifests and other files of ours are read through here.
"""

import dataclasses
import difflib
import json
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from krakenlm.errors import ConfigError, KrakenError

_T = TypeVar("_T")
# Of ``difflib``: one letter left out, doubled or changed in a short word, more in a longer one.
_NEAR = 0.75


def from_plain(cls: type[_T], values: Any, name: str = "") -> _T:
    """Build the dataclass ``cls`` from a table with exactly its fields, of the right types.

    Tables become dataclasses and lists tuples where the fields say so, at any depth.

    Args:
        cls: the dataclass.
        values: what a JSON or TOML reader gave.
        name: of the table, for messages: ``[training]`` or ``splits.train``.

    Raises:
        ConfigError: an unknown or missing key, or a value of another type.
    """
    assert dataclasses.is_dataclass(cls)
    if not isinstance(values, Mapping):
        raise ConfigError(f"{name or 'the file'} is {values!r}: needs a table of keys and values")
    hints = _hints(cls)
    where = f" in {name}" if name else ""
    refuse_unknown(values, set(hints), where)
    for field in dataclasses.fields(cls):
        has_default = (field.default, field.default_factory) != (dataclasses.MISSING,) * 2
        if not has_default and field.name not in values:
            raise ConfigError(f"{field.name} is missing{where}")
    # A table of a recipe is known by its brackets; deeper ones by the way to them.
    prefix = f"{name}." if name and not name.startswith("[") else ""
    return cls(**{key: _fitting(hints[key], prefix + key, item) for key, item in values.items()})


def read_json(path: Path, advice: str) -> Any:
    """The content of a JSON file.

    Args:
        path: of the file.
        advice: what to do about a damaged one, for the message.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none; the caller knows what that means.
        KrakenError: it cannot be read, or is not JSON.
    """
    try:
        return json.loads(path.read_bytes())  # which tells UTF-8 and UTF-16 apart, with marks
    except (FileNotFoundError, NotADirectoryError):
        raise
    except OSError as error:
        raise _unreadable(path, error, advice) from error
    except RecursionError as error:
        raise _unreadable(path, "its tables are nested too deeply", advice) from error
    except ValueError as error:
        raise _unreadable(path, f"not valid JSON: {error}", advice) from error


def from_json(cls: type[_T], values: Any, path: Path, advice: str) -> _T:
    """``from_plain`` of what ``read_json`` found; the message names the file and what to do."""
    try:
        return from_plain(cls, values)
    except KrakenError as error:
        raise _unreadable(path, error, advice) from error


def read_if_there(cls: type[_T], path: Path, advice: str) -> _T | None:
    """The dataclass ``cls`` that a JSON file of ours holds; None where there is no file.

    Raises:
        KrakenError: it cannot be read, or holds something else; ``advice`` says what to do.
    """
    try:
        return from_json(cls, read_json(path, advice), path, advice)
    except FileNotFoundError:
        return None


def read_report(
    cls: type[_T],
    path: Path,
    kind: str,
    version: int,
    *,
    what: str,
    advice: str,
    again: str,
    current: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> _T:
    """A result that a command wrote earlier.

    Args:
        cls: a dataclass with ``kind`` and ``schema_version`` among its fields.
        path: of the file.
        kind: that tells these files from others.
        version: of the layout that is read.
        what: such a file is, for messages: ``an evaluation``.
        advice: what to give instead of a file that is none.
        again: what to do where the layout or the content is another.
        current: makes the present layout of an earlier one, and hands back what it does not know.

    Raises:
        KrakenError: no such file, another kind or version, or keys and values that do not belong.
    """
    try:
        value = read_json(path, advice)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise KrakenError(f"cannot read {path}: there is no such file: {advice}") from error
    try:
        value = current(value)
    except (AttributeError, KeyError, TypeError, ValueError):
        value = None  # no layout of these
    if value is None or value.get("kind") != kind:
        raise KrakenError(f"{path} is no {what.partition(' ')[2]}: {advice}")
    if value.get("schema_version") != version:
        raise KrakenError(
            f"{path} is {what} of schema version {value.get('schema_version')!r}, and this "
            f"krakenlm reads none above {version}: update krakenlm or {again}"
        )
    return from_json(cls, value, path, again)


def check_types(instance: Any) -> None:
    """Check a frozen dataclass that is being made; an int where a float belongs becomes one.

    Raises:
        ConfigError: a field's value is of another type, or not one of its literals.
    """
    for name, hint in _hints(instance.__class__).items():
        object.__setattr__(instance, name, _fitting(hint, name, getattr(instance, name)))


def refuse_unknown(values: Mapping[str, Any], known: AbstractSet[str], where: str = "") -> None:
    """Raise ``ConfigError`` for the first key of ``values`` that is not ``known``."""
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(sorted(known))}"
            raise ConfigError(f"unknown key {key!r}{where}: {hint}")


def refuse_near_misses(values: Mapping[str, Any], known: AbstractSet[str]) -> None:
    """Raise ``ConfigError`` for a key that is spelt almost like one of ``known``; others may be."""
    for key in values:
        near = [] if key in known else difflib.get_close_matches(key, sorted(known), 1, _NEAR)
        if near:
            raise ConfigError(f"unknown key {key!r}: did you mean {near[0]!r}?")


@cache
def _hints(cls: Any) -> dict[str, Any]:
    """The types of a dataclass's fields; working them out takes longer than all else here."""
    return get_type_hints(cls)


def _unreadable(path: Path, why: object, advice: str) -> KrakenError:
    return KrakenError(f"cannot read {path} ({why}): {advice}")


def _fitting(hint: Any, name: str, value: Any) -> Any:
    """``value`` as the type ``hint`` wants it."""
    if hint is Any or type(value) is hint:
        return value
    if get_origin(hint) is Literal:
        if value not in get_args(hint):
            fits = ", ".join(map(repr, get_args(hint)))
            raise ConfigError(f"{name}={value!r}: choose one of {fits}")
        return value
    if get_origin(hint) in (UnionType, Union):  # the latter where a Literal is one of two
        (needed,) = set(get_args(hint)) - {NoneType}
        return None if value is None else _fitting(needed, name, value)
    if get_origin(hint) is tuple and isinstance(value, list | tuple):
        item = get_args(hint)[0]
        return tuple(_fitting(item, f"{name}[{i}]", each) for i, each in enumerate(value))
    if get_origin(hint) is dict and isinstance(value, dict):
        item = get_args(hint)[1]
        return {key: _fitting(item, f"{name}.{key}", each) for key, each in value.items()}
    if dataclasses.is_dataclass(hint):
        assert isinstance(hint, type)
        return value if isinstance(value, hint) else from_plain(hint, value, name)
    if hint is float and type(value) is int:
        return float(value)
    if hint is Path and isinstance(value, str | Path):
        return Path(value)
    if type(value) is not (get_origin(hint) or hint):
        # A TOML or JSON file has lists where the fields have tuples.
        wanted = "list" if get_origin(hint) is tuple else getattr(hint, "__name__", hint)
        raise ConfigError(f"{name}={value!r}: needs a value of type {wanted}")
    return value
