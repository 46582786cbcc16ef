"""Profiles that somebody measured: the same files as the committed ones, told apart by ``kind``.

A file holds a device, a link, or as kind ``machine`` a table of each.
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from krakenlm.errors import KrakenError
from krakenlm.files import write_whole
from krakenlm.plan.constants import read_toml
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.link import LinkProfile
from krakenlm.strict import from_plain, refuse_unknown

Profile = DeviceProfile | LinkProfile
_KINDS: dict[str, type[DeviceProfile] | type[LinkProfile]] = {
    "device": DeviceProfile,
    "link": LinkProfile,
}
MACHINE = "machine"
"""The kind of a file that holds both."""


def read_profiles(paths: Sequence[Path]) -> dict[str, Profile]:
    """Profiles by their kind, one of each at most.

    Raises:
        KrakenError: a file that is not there or no profile, or two of one kind.
    """
    found: dict[str, Profile] = {}
    for path in paths:
        for values in _tables(path):
            kind = values.get("kind")
            if kind not in _KINDS:
                raise KrakenError(
                    f"--profile {path}: kind={kind!r}: a profile is of kind device, link or "
                    f"{MACHINE}"
                )
            if kind in found:
                raise KrakenError(f"--profile {path}: a {kind} was given already: leave one out")
            try:
                found[kind] = from_plain(_KINDS[kind], values)
            except KrakenError as error:
                raise KrakenError(f"--profile {path}: {error}") from error
    return found


def write_machine(target: Path, device: DeviceProfile, link: LinkProfile | None = None) -> None:
    """Write what was measured on a machine as a file that ``read_profiles`` reads."""
    values: dict[str, Any] = {"kind": MACHINE, "device": dataclasses.asdict(device)}
    if link is not None:
        values["link"] = dataclasses.asdict(link)
    write_whole(target, "\n".join(_lines(values)) + "\n")


def _tables(path: Path) -> list[dict[str, Any]]:
    values = read_toml(path)
    if values.get("kind") != MACHINE:
        return [values]
    try:
        refuse_unknown(values, {"kind", *_KINDS})
    except KrakenError as error:
        raise KrakenError(f"--profile {path}: {error}") from error
    return [values[kind] for kind in _KINDS if isinstance(values.get(kind), dict)]


def _lines(values: Mapping[str, Any], name: str = "") -> Iterator[str]:
    """TOML, as far as profiles need it: what is no table first, then tables and lists of them."""
    for key, value in values.items():
        if _is_plain(value):
            yield f"{key} = {_plain(value)}"
    for key, value in values.items():
        full = f"{name}.{key}" if name else key
        if value is None or _is_plain(value):
            continue
        for each in [value] if isinstance(value, Mapping) else value:
            yield ""
            yield f"[{full}]" if isinstance(value, Mapping) else f"[[{full}]]"
            yield from _lines(each, full)


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "value" in value  # a constant stands on one line
    if isinstance(value, Sequence) and not isinstance(value, str):
        return not any(isinstance(item, Mapping) for item in value)
    return value is not None


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{ " + ", ".join(f"{k} = {_plain(v)}" for k, v in value.items()) + " }"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "[" + ", ".join(map(_plain, value)) + "]"
    return json.dumps(value, ensure_ascii=False)
