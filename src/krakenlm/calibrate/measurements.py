"""What was measured of a machine, before anything is concluded from it."""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from krakenlm.bench.ranks import gathered, gpu_name, peak_rss_bytes
from krakenlm.calibrate.passes import ProbeTime
from krakenlm.calibrate.points import Point, Probe
from krakenlm.calibrate.sums import BesideTimes, SumTime
from krakenlm.environment import Environment, cores_here
from krakenlm.ranks.launch import Rank


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where it was measured.

    Attributes:
        device_type: cpu or cuda.
        processor: by name.
        ranks: that worked at once.
        threads: of each rank, on CPUs.
        memory_bytes: of one device; of a host its ranks' share.
        reserved_bytes: of that, what libraries held before there were weights.
        multiprocessors: of a GPU; 1 on CPUs.
        megahertz: of the processor's clock as the system gives it; None where it does not.
        versions: of what computes, for people.
    """

    device_type: str
    processor: str
    ranks: int
    threads: int
    memory_bytes: int
    reserved_bytes: int
    multiprocessors: int
    megahertz: float | None
    versions: str

    @property
    def in_words(self) -> str:
        """For the sources of constants."""
        clock = "clock unknown" if self.megahertz is None else f"{self.megahertz:.0f} MHz"
        ranks = f"{self.ranks} ranks at once" if self.ranks > 1 else "alone"
        return f"{ranks} on {self.processor}, {clock}, {self.versions}"


@dataclass(frozen=True, kw_only=True)
class Measurements:
    """Everything of one calibration; times in seconds.

    Attributes:
        machine: where.
        dtype: of weights, cache and messages.
        points: operators, each with its time.
        reads: bytes of weights that were read again and again, and the time of one product.
        transport: what carried sums; empty where one device has none.
        sums: of all sizes.
        beside: a sum beside compute.
        probes: small models, each with its times.
        vocabulary_size: of these.
    """

    machine: Machine
    dtype: str
    points: tuple[tuple[Point, float], ...] = ()
    reads: tuple[tuple[int, float], ...] = ()
    transport: str = ""
    sums: tuple[SumTime, ...] = ()
    beside: BesideTimes | None = None
    probes: tuple[tuple[Probe, ProbeTime], ...] = ()
    vocabulary_size: int = 0


def machine_of(rank: Rank) -> Machine:
    """This rank's device, asked before any weights are made; all ranks call it."""
    environment = Environment.here(len(cores_here()))
    of_ranks = gathered(rank, peak_rss_bytes())
    gpu = gpu_name(rank.device)
    if rank.device.type == "cuda":
        free, total = torch.cuda.mem_get_info(rank.device)
        memory, reserved = total, total - free
        multiprocessors = torch.cuda.get_device_properties(rank.device).multi_processor_count
        megahertz = None
        versions = f"PyTorch {environment.torch}, CUDA {torch.version.cuda}"
    else:
        memory, reserved = _host_bytes() // rank.size, max(of_ranks)
        multiprocessors, megahertz = 1, _megahertz()
        versions = f"PyTorch {environment.torch}{_onednn()}"
    return Machine(
        device_type=rank.device.type,
        processor=gpu or environment.machine,
        ranks=rank.size,
        threads=torch.get_num_threads(),
        memory_bytes=memory,
        reserved_bytes=reserved,
        multiprocessors=multiprocessors,
        megahertz=megahertz,
        versions=versions,
    )


def weight_room(machine: Machine) -> float:
    """Bytes of weights that a calibration may make on each rank."""
    return min(_MOST_WEIGHTS[machine.device_type], 0.2 * machine.memory_bytes)


_MOST_WEIGHTS = {"cpu": 0.6e9, "cuda": 8e9}


def _host_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _megahertz() -> float | None:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return None  # not Linux
    found: Sequence[str] = re.findall(r"^cpu MHz\s*: ([0-9.]+)", text, re.MULTILINE)
    return float(found[0]) if found else None


def _onednn() -> str:
    found = re.search(r"MKL-DNN v([0-9.]+)", torch.__config__.show())
    return f", oneDNN {found[1]}" if found else ""
