"""What ``--device``, ``--dtype`` and ``--threads`` may be."""

from typing import Literal, get_args

import torch

from krakenlm.errors import KrakenError
from krakenlm.model.packed import can_pack

DeviceType = Literal["auto", "cpu", "cuda"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""By name; what ``auto`` stands for depends on who asks."""

_BFLOAT16_INSTRUCTIONS = ("avx512_bf16", "amx_bf16", "avx10_2", "bf16")
"""As PyTorch calls them: of x86 processors, and the last of ARM's."""


def check_device(name: str) -> None:
    """Refuse what ``launch`` does not know.

    Raises:
        KrakenError: an unknown name.
    """
    if name not in get_args(DeviceType):
        raise KrakenError(f"--device {name}: choose one of {', '.join(get_args(DeviceType))}")


def device_of(device_type: DeviceType, index: int = 0, ranks: int = 1) -> torch.device:
    """Where a rank computes; its GPU becomes the current one.

    Args:
        device_type: what ``--device`` says.
        index: the rank's place among those of this machine.
        ranks: how many those are; with fewer GPUs, ``auto`` is the CPU.

    Raises:
        KrakenError: GPUs were asked for and there are too few.
    """
    gpus = torch.cuda.device_count() if device_type != "cpu" else 0
    if gpus >= ranks:
        torch.cuda.set_device(index)
        return torch.device("cuda", index)
    if device_type == "cuda" and gpus == 0:
        raise KrakenError("--device cuda: this machine has no GPU: use --device cpu")
    if device_type == "cuda":
        raise KrakenError(
            f"--device cuda: {ranks} ranks need {ranks} GPUs and this machine has {gpus}: use "
            "fewer --devices or --device cpu"
        )
    return torch.device("cpu")


def check_dtype(name: str) -> None:
    """Refuse what is neither ``auto`` nor in ``DTYPES``.

    Raises:
        KrakenError: an unknown name.
    """
    if name not in ("auto", *DTYPES):
        raise KrakenError(f"--dtype {name}: choose one of auto, {', '.join(DTYPES)}")


def check_threads(threads: int | None) -> None:
    """Refuse a number of compute threads that is none; None is one for each core.

    Raises:
        KrakenError: below 1.
    """
    if threads is not None and threads < 1:
        raise KrakenError(f"--threads {threads}: needs 1 or more")


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 itself; others take longer for it than for float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if not hasattr(torch.cpu, "get_capabilities"):  # PyTorch 2.9: what oneDNN has products for
        return can_pack(torch.empty(1, 1, dtype=torch.bfloat16))
    found = torch.cpu.get_capabilities()
    return any(found.get(name) for name in _BFLOAT16_INSTRUCTIONS)


def name_of(dtype: torch.dtype) -> str:
    """What ``--dtype`` calls it."""
    return next(name for name, known in DTYPES.items() if known == dtype)
