"""What a device can do, and what names ask for."""

import pytest
import torch

from krakenlm.bench.ranks import dtype_on
from krakenlm.ranks import devices
from krakenlm.ranks.devices import has_bfloat16
from krakenlm.train import trainer
from krakenlm.train.recipe import Training

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"architecture": "x86_64", "avx512_f": True, "avx512_bf16": False}, False),
        ({"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}, True),
        ({"architecture": "x86_64", "avx512_bf16": False, "amx_bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": True}, True),
        ({"architecture": "arm64", "neon": True, "bf16": False}, False),
    ],
)
def test_bfloat16_on_a_cpu_is_a_matter_of_its_instructions(monkeypatch, capabilities, expected):
    """Training and the benchmarks ask the same."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_bfloat16(CPU) == expected
    assert dtype_on(CPU, "auto") == (torch.bfloat16 if expected else torch.float32)
    settings = Training(steps=1, batch_size=1, learning_rate=1e-3)
    assert trainer._uses_bfloat16(settings, use_cpu=True) == expected


@pytest.mark.parametrize("expected", [False, True])
def test_a_pytorch_that_does_not_tell_is_asked_for_its_products(monkeypatch, expected):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    monkeypatch.setattr(devices, "can_pack", lambda weight: expected)
    assert has_bfloat16(CPU) == expected


@pytest.mark.parametrize("expected", [False, True])
def test_a_gpu_that_only_emulates_bfloat16_does_not_have_it(monkeypatch, expected):
    def supported(including_emulation=True):
        return including_emulation or expected

    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    assert has_bfloat16(torch.device("cuda")) == expected


def test_a_named_dtype_is_that_one():
    assert dtype_on(CPU, "float16") == torch.float16
