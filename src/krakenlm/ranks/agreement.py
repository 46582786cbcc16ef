"""Ranks of several machines must run the same program over the same files."""

from torch import distributed as dist

from krakenlm.environment import own_version
from krakenlm.errors import KrakenError


def require_same(what: str, mine: str, advice: str) -> None:
    """Compare what every rank of the default process group has; all of them call it.

    Args:
        what: for people.
        mine: this rank's.
        advice: what to do where they differ.

    Raises:
        KrakenError: on every rank: one has another than rank 0.
    """
    found: list[str] = [""] * dist.get_world_size()
    dist.all_gather_object(found, mine)
    for rank, theirs in enumerate(found):
        if theirs != found[0]:
            raise KrakenError(f"{what}: rank {rank} has {theirs} and rank 0 {found[0]}: {advice}")


def require_same_version() -> None:
    """Refuse ranks with different versions of krakenlm.

    Raises:
        KrakenError: on every rank.
    """
    require_same("krakenlm", own_version(), "install the same version everywhere")
