"""The Reducer seam: how the branches of a layer are summed, and when the sum is there.

A wiring calls ``begin`` as soon as the branches are ready and ``wait`` where it needs their sum.
What lies between the two may run while the sum is under way.
"""

from typing import NamedTuple, Protocol

from torch import Tensor


class Pending(Protocol):
    """A sum that has been begun."""

    def wait(self) -> Tensor:
        """The sum over all branches of all ranks, x_1BTD; call once."""
        ...


class Reducer(Protocol):
    """Sums branches: those of this process, then across processes."""

    def begin(self, branches_KBTD: Tensor) -> Pending:
        """Start the sum; ``branches_KBTD`` is not written to and may be read meanwhile."""
        ...


class Ready(NamedTuple):
    """A sum that needs no waiting."""

    total_1BTD: Tensor

    def wait(self) -> Tensor:
        """The sum itself."""
        return self.total_1BTD


class LocalReducer:
    """All branches live in this process: trains, and is the oracle for every other Reducer.

    On one rank's part of a split model it leaves communication out: wrong numbers in the time
    that compute alone takes.
    """

    def begin(self, branches_KBTD: Tensor) -> Ready:
        """Sum at once."""
        if branches_KBTD.shape[0] == 1:
            return Ready(branches_KBTD)
        return Ready(branches_KBTD.sum(dim=0, keepdim=True))


class ScaledReducer:
    """What another Reducer sums, times a number: its sums over N streams are means with 1/N.

    Args:
        reducer: makes the sums.
        scale: the number.
    """

    def __init__(self, reducer: Reducer, scale: float) -> None:
        self._reducer = reducer
        self._scale = scale

    def begin(self, branches_KBTD: Tensor) -> Pending:
        """Start the sum."""
        return _Scaled(self._reducer.begin(branches_KBTD), self._scale)


class _Scaled(NamedTuple):
    pending: Pending
    scale: float

    def wait(self) -> Tensor:
        return self.pending.wait() * self.scale
