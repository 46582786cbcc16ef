"""What ranks tell each other once: who they are, and that they are alike.

Ranks of several machines must run the same program over the same files.
"""

import platform
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from torch import distributed as dist

from krakenlm.environment import own_version
from krakenlm.errors import KrakenError

_T = TypeVar("_T")


def told_by_all(mine: _T, group: dist.ProcessGroup | None = None) -> list[_T]:
    """What every rank of a group has, in rank order; all of them call it.

    Args:
        mine: this rank's.
        group: the ranks; None is the default group.
    """
    found: list[_T] = [mine] * dist.get_world_size(group)
    dist.all_gather_object(found, mine, group=group)
    return found


def boot() -> str:
    """The same for all processes of a machine, until it is started again."""
    path = Path("/proc/sys/kernel/random/boot_id")
    return path.read_text().strip() if path.is_file() else platform.node()


def own_namespace(kind: str) -> str:
    """The same for processes in one namespace of Linux, such as ``net``; empty elsewhere."""
    with suppress(OSError):
        return str(Path(f"/proc/self/ns/{kind}").readlink())
    return ""


def require_same(what: str, mine: str, advice: str) -> None:
    """Compare what every rank of the default process group has; all of them call it.

    Args:
        what: for people.
        mine: this rank's.
        advice: what to do where they differ.

    Raises:
        KrakenError: on every rank: one has another than rank 0.
    """
    found = told_by_all(mine)
    for rank, theirs in enumerate(found):
        if theirs != found[0]:
            raise KrakenError(f"{what}: rank {rank} has {theirs} and rank 0 {found[0]}: {advice}")


def require_same_version() -> None:
    """Refuse ranks with different versions of krakenlm.

    Raises:
        KrakenError: on every rank.
    """
    require_same("krakenlm", own_version(), "install the same version everywhere")
