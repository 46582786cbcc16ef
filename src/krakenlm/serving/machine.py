"""Which vLLM is installed here, and what suits it on this machine."""

import os
import sys
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

from krakenlm.errors import KrakenError

VLLM = (sys.executable, "-m", "vllm.entrypoints.cli.main")
"""The ``vllm`` command of this environment, whether or not its script is on the path."""

QUIET = {"VLLM_LOGGING_LEVEL": "WARNING", "VLLM_LOGGING_STREAM": "ext://sys.stderr"}
"""Environment of a vLLM whose progress is nobody's concern: stdout is for results."""

_GIB = 2**30
_INSTALL = (
    'on GPUs `pip install "krakenlm[vllm]"`, on CPUs `make vllm-env` in a checkout of krakenlm'
)


def vllm_is_for_cpus() -> bool:
    """Whether vLLM's build is the one for CPUs.

    Raises:
        KrakenError: there is none; the message says how to install it.
    """
    if find_spec("vllm") is None:
        raise KrakenError(f"vLLM is not installed here: {_INSTALL}")
    try:
        return "cpu" in version("vllm")
    except PackageNotFoundError as error:
        raise KrakenError(f"vLLM is only half installed here: {_INSTALL}") from error


def cpu_settings(devices: int) -> dict[str, str]:
    """A share of the cores for each rank, and room for the cache in half of what is free."""
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // devices)
    shares = [
        [cores[(rank * each + i) % len(cores)] for i in range(each)] for rank in range(devices)
    ]
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "VLLM_CPU_OMP_THREADS_BIND": "|".join(",".join(map(str, share)) for share in shares),
        "VLLM_CPU_KVCACHE_SPACE": str(max(1, min(4, free // (2 * devices * _GIB)))),
    }
