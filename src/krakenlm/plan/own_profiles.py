"""Profiles that somebody measured: the same files as the committed ones, told apart by ``kind``."""

from collections.abc import Sequence
from pathlib import Path

from krakenlm.errors import KrakenError
from krakenlm.plan.constants import read_toml
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.link import LinkProfile
from krakenlm.strict import from_plain

Profile = DeviceProfile | LinkProfile
_KINDS: dict[str, type[DeviceProfile] | type[LinkProfile]] = {
    "device": DeviceProfile,
    "link": LinkProfile,
}


def read_profiles(paths: Sequence[Path]) -> dict[str, Profile]:
    """Profiles by their kind, one of each at most.

    Raises:
        KrakenError: a file that is not there or no profile, or two of one kind.
    """
    found: dict[str, Profile] = {}
    for path in paths:
        values = read_toml(path)
        kind = values.get("kind")
        if kind not in _KINDS:
            raise KrakenError(
                f"--profile {path}: kind={kind!r}: a profile is of kind device or link"
            )
        if kind in found:
            raise KrakenError(f"--profile {path}: a {kind} was given already: leave one out")
        try:
            found[kind] = from_plain(_KINDS[kind], values)
        except KrakenError as error:
            raise KrakenError(f"--profile {path}: {error}") from error
    return found
