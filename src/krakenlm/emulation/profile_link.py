"""The planner's links as links that are emulated: their times, and what their kernels take."""

from dataclasses import replace

from krakenlm.errors import KrakenError
from krakenlm.plan.constants import names
from krakenlm.plan.link import FASTEST, Kernel, LinkProfile
from krakenlm.transport.gpu_share import GpuShare, of_multimem, of_one_shot, of_ring
from krakenlm.transport.links import Carriage, Link, LinkModel


class ProfileLink:
    """A link of the planner's, for ``--link``.

    Args:
        profile: the link.
        kernel: how sums are made; None is its usual way, ``fastest`` the quickest for each message.

    Raises:
        KrakenError: the link has no such kernel.
    """

    def __init__(self, profile: LinkProfile, kernel: str | None = None) -> None:
        self.profile = profile
        self.kernel = profile.usual_kernel if kernel is None else kernel
        profile.sums(self.kernel, on_cpu=False)  # refuses others
        chosen = list(profile.kernels) if self.kernel == FASTEST else [self.kernel]
        # Not the compute that sums take on CPUs: emulated peers leave it out, as that of transports
        # is somebody else's. Of a GPU it is what ``transport.gpu_share`` says.
        self._kernels = [(profile.kernels[k], profile.sums(k, on_cpu=False)) for k in chosen]
        self._known: dict[tuple[int, int], Carriage] = {}

    def __str__(self) -> str:
        return f"{self.profile.name}, {self.kernel}"

    def carry(self, nbytes: int, ranks: int) -> Carriage:
        """An AllReduce of so many bytes over so many ranks."""
        found = self._known.get((nbytes, ranks))
        if found is None:
            costs = [(kernel, sums(nbytes, ranks)) for kernel, sums in self._kernels]
            kernel, cost = min(costs, key=lambda item: item[1].alone)
            found = Carriage(cost.wire, cost.behind, _share(kernel, nbytes, ranks))
            self._known[nbytes, ranks] = found
        return found

    @property
    def planned(self) -> LinkProfile:
        """What the planner is to plan with, to foretell a run over this link."""
        kernels = {
            name: replace(
                kernel, begin_us=None, begin_ns_per_byte=None, wait_us=None, wait_ns_per_byte=None
            )
            for name, kernel in self.profile.kernels.items()
        }
        return replace(self.profile, kernels=kernels)


def _share(kernel: Kernel, nbytes: int, ranks: int) -> GpuShare:
    if kernel.algorithm == "one-shot":
        return of_one_shot(nbytes, ranks)
    if kernel.algorithm == "multimem":
        return of_multimem(nbytes, ranks)
    return of_ring(nbytes, ranks, kernel.gb_per_second.value)


def read_link(text: str, kernel: str | None = None) -> LinkModel | None:
    """What ``--link`` and ``--allreduce`` say: a link to emulate, or None for the one there is.

    Raises:
        KrakenError: neither a link's name nor its numbers, or a kernel that it does not have.
    """
    if text in names("links"):
        return ProfileLink(LinkProfile.named(text), kernel)
    link = Link.parse(text)
    if kernel is not None:
        raise KrakenError(
            f"--allreduce {kernel}: --link {text} has one way to sum: leave it out, or take one of "
            f"{', '.join(names('links'))}"
        )
    return link
