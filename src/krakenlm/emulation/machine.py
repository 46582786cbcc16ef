"""What the grid is measured on and planned for: a device, its profile, a link that is not there."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from krakenlm.bench.ranks import dtype_on, gpu_name
from krakenlm.emulation.profile_link import ProfileLink
from krakenlm.environment import Environment, cores_here
from krakenlm.errors import KrakenError
from krakenlm.plan.constants import Constant
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.link import FASTEST, LinkProfile
from krakenlm.plan.paper_grid import LINK
from krakenlm.plan.planner import Setup as PlanSetup
from krakenlm.ranks.devices import check_device, check_dtype, device_of, name_of

_BY_NAME = {
    "H200": "h200",
    "H100 80GB HBM3": "h100",
    "A100-SXM4-80GB": "a100-80gb",
    "A100-SXM4-40GB": "a100-40gb",
    "L40S": "l40s",
    "RTX 4090": "rtx4090",
}
"""Profiles by what is part of a GPU's name."""
_CPU = "cpu-core"
_HELD = Constant(value=1.0, basis="assumed", source="a held sum lasts as long as the link says")


@dataclass(frozen=True, kw_only=True)
class Machine:
    """One device that stands for several.

    Attributes:
        device: where the one rank runs.
        link: to the others.
        dtype: by name.
        profile: of the device, for the planner; None where nobody has one of it.
    """

    device: torch.device
    link: ProfileLink
    dtype: str
    profile: DeviceProfile | None

    @cached_property
    def name(self) -> str:
        """As reports have it."""
        return Environment.here(cores=len(cores_here()), gpu=gpu_name(self.device)).machine

    @property
    def captures(self) -> bool:
        """Whether prompts run as CUDA graphs."""
        return self.device.type == "cuda"

    def plan_setup(self) -> PlanSetup | None:
        """What the planner is asked; None where it has no profile."""
        if self.profile is None:
            return None
        # Of a GPU a held sum takes what a real one takes, and of a CPU nothing.
        device = replace(self.profile, allreduce_slowdown_beside_compute=_HELD)
        if self.device.type == "cpu":
            device = replace(device, compute_slowdown_beside_allreduce=_HELD)
        return PlanSetup(
            device=device,
            link=self.link.planned,
            kernel=self.link.kernel,
            dtype=self.dtype,
            graph_prefill=self.captures,
        )


def machine_at(
    name: str,
    profiles: Mapping[str, Any],
    *,
    link: str | None = None,
    kernel: str | None = None,
    dtype: str = "auto",
) -> Machine:
    """The machine at hand.

    Args:
        name: of the device where the one rank runs, as ``--device`` has it.
        profiles: of one's own, as ``plan.profile_files`` reads them.
        link: a name or numbers; None is one's own, or such devices' usual one, or the paper's.
        kernel: how sums are made; None is the fastest for each message, as in the planner's grid.
        dtype: by name; ``auto`` is float16 on GPUs, as the paper has it, or what the profile has.

    Raises:
        KrakenError: a device that is not there or that the profile is not of, a link, a kernel or a
            type that does not exist.
    """
    check_device(name)
    check_dtype(dtype)
    device = device_of(name)  # type: ignore[arg-type]  # checked above
    known_as = _profile_of(device)
    profile = profiles.get("device") or known_as
    processor = "cpu" if device.type == "cpu" else "gpu"
    if profile is not None and profile.processor != processor:
        raise KrakenError(
            f"--profile: {profile.name} is of a {profile.processor}, and this runs on a "
            f"{processor}: give one of this device, or another --device"
        )
    if link is not None:
        between = LinkProfile.named(link)
    else:
        # Not the usual link of a calibrated device, which knows nothing of where it is installed.
        usual = LINK if known_as is None else known_as.usual_link
        between = profiles.get("link") or LinkProfile.named(usual)
    if dtype == "auto":
        dtype = "float16" if device.type == "cuda" else name_of(dtype_on(device, dtype))
        known = () if profile is None else tuple(profile.peak_tflop_per_second)
        dtype = dtype if dtype in known or not known else known[0]
    elif profile is not None:
        profile.costs(dtype)  # refuses what it has no peak of
    return Machine(
        device=device,
        link=ProfileLink(between, FASTEST if kernel is None else kernel),
        dtype=dtype,
        profile=profile,
    )


def _profile_of(device: torch.device) -> DeviceProfile | None:
    if device.type == "cpu":
        return DeviceProfile.named(_CPU)
    name = gpu_name(device)
    found = (profile for part, profile in _BY_NAME.items() if part in name)
    known = next(found, None)
    return None if known is None else DeviceProfile.named(known)
