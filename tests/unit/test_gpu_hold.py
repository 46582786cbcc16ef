"""Sums held on a GPU, as far as can be told without one: shares, launches, the kernel's text."""

import ctypes
import re
import shutil
import subprocess
from types import SimpleNamespace

import pytest
import torch

from krakenlm.transport import gpu_hold
from krakenlm.transport.gpu_hold import PTX, TILE_BYTES, HoldKernel, Launch, hold_on, launch_of
from krakenlm.transport.gpu_share import GpuShare, of_multimem, of_one_shot, of_ring
from krakenlm.transport.links import Carriage, Link

KIB, MIB = 1 << 10, 1 << 20


@pytest.mark.parametrize(
    ("nbytes", "ranks", "gb_per_second", "share"),
    [
        (4 * KIB, 2, 220, (1, 6 * KIB)),  # both ranks pass a half twice: 1.5 times 4 KiB
        (64 * KIB, 4, 220, (4, 144 * KIB)),
        (8 * MIB, 4, 220, (24, 18 * MIB)),
        (8 * MIB, 8, 900, (24, 21 * MIB)),
        (8 * MIB, 4, 12.5, (2, 18 * MIB)),  # 100 Gbit/s
        (8 * MIB, 4, 0.1, (1, 18 * MIB)),
    ],
)
def test_a_ring_takes_a_channel_for_its_rate_and_its_bytes(nbytes, ranks, gb_per_second, share):
    assert of_ring(nbytes, ranks, gb_per_second) == share


def test_kernels_that_reach_all_at_once_take_as_many_blocks_as_they_start():
    assert of_one_shot(8 * KIB, 8) == (1, 36 * KIB)  # read by eight, written once
    assert of_one_shot(MIB, 2) == (36, 1.5 * MIB)
    assert of_multimem(64 * KIB, 4) == (1, 64 * KIB)
    assert of_multimem(MIB, 8) == (8, MIB)
    assert of_multimem(8 * MIB, 8) == (8, 8 * MIB)


def test_a_link_by_hand_is_carried_as_a_ring():
    carriage = Link(gbps=100, latency_us=5).carry(MIB, 4)
    wanted = Carriage(1.5 * MIB * 8e-11, 30e-6, of_ring(MIB, 4, 12.5))
    assert carriage.share == wanted.share
    assert carriage[:2] == pytest.approx(wanted[:2])


def test_a_launch_moves_all_bytes_at_an_even_pace():
    share = GpuShare(24, 10 * MIB)
    launch = launch_of(130e-6, share, nbytes=3 * MIB, multiprocessors=132)
    assert launch == Launch(24, 512, True, 130_000, 130_000 // 14, 14, 96)
    assert (launch.tiles - 1) * 24 * TILE_BYTES < 10 * MIB <= launch.tiles * 24 * TILE_BYTES
    huge = launch_of(1.0, GpuShare(24, 10**9), nbytes=10**9, multiprocessors=132)
    assert huge.region * TILE_BYTES == 32 * MIB
    assert huge.interval * huge.tiles <= huge.nanoseconds


def test_a_launch_that_takes_nothing_only_waits_and_one_multiprocessor_is_left_to_others():
    assert launch_of(5e-6, GpuShare(), 0, 132) == Launch(1, 32, False, 5000, 0, 0, 1)
    assert launch_of(5e-6, GpuShare(24, MIB), MIB, 16).blocks == 15


class Driver:
    """CUDA's driver, which notes what is launched; calls named in ``refuses`` fail."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses
        self.launched: list[dict] = []
        self.set: list[tuple] = []

    def __getattr__(self, name: str):
        if not name.startswith("cu"):
            raise AttributeError(name)
        return lambda *arguments: 1 if name == self.refuses else self.call(name, arguments)

    def call(self, name: str, arguments) -> int:
        if name == "cuModuleLoadData":
            self.text = arguments[1]
        elif name == "cuModuleGetFunction":
            assert arguments[2] == b"hold"
            arguments[0]._obj.value = 77
        elif name == "cuDeviceGetAttribute":
            assert arguments[1] == 97
            arguments[0]._obj.value = 232_448
        elif name == "cuGetErrorString":
            arguments[1]._obj.value = b"invalid device"
        elif name == "cuFuncSetAttribute":
            self.set.append((arguments[0].value, *arguments[1:]))
        elif name == "cuLaunchKernel":
            function, *sizes, shared, stream, pointers, extra = arguments
            types = (ctypes.c_uint64,) * 2 + (ctypes.c_uint32,) * 2 + (ctypes.c_uint64,) * 2
            values = [
                ctypes.cast(pointer, ctypes.POINTER(kind)).contents.value
                for pointer, kind in zip(pointers, types, strict=True)
            ]
            self.launched.append(
                {"function": function.value, "sizes": sizes, "shared": shared,
                 "stream": stream.value, "values": values, "extra": extra}
            )  # fmt: skip
        return 0


MEMORY = torch.zeros(128, dtype=torch.uint8)
STREAM = SimpleNamespace(cuda_stream=4321)


def test_the_kernel_is_launched_with_what_its_text_declares():
    driver = Driver()
    kernel = HoldKernel(driver, MEMORY, 132)
    assert driver.text == PTX.encode() and driver.set == [(77, 8, 232_448)]
    kernel(STREAM, 130e-6, GpuShare(24, 10 * MIB), 3 * MIB)
    kernel(STREAM, 5e-6, GpuShare(), 0)
    first, second = driver.launched
    assert (first["function"], first["stream"], first["extra"]) == (77, 4321, None)
    assert first["sizes"] == [24, 1, 1, 512, 1, 1] and first["shared"] == 232_448
    start = MEMORY.data_ptr()
    assert first["values"] == [130_000, 9285, 14, 96, start, start + 64]
    assert second["sizes"] == [1, 1, 1, 32, 1, 1] and second["shared"] == 0
    assert second["values"][:4] == [5000, 0, 0, 1]
    declared = re.findall(r"\.param \.(u\d+)", PTX)
    assert declared == ["u64", "u64", "u32", "u32", "u64", "u64"]


def test_the_kernels_text_copies_whole_tiles():
    threads = int(re.search(r"\.maxntid (\d+)", PTX)[1])
    assert launch_of(1e-6, GpuShare(1, 1), 1, 9).threads == threads
    assert int(re.search(r"mul\.wide\.u32 %at, %place, (\d+)", PTX)[1]) == TILE_BYTES
    for what in ("ld", "st"):
        places = re.findall(rf"{what}\.global\.v4\.u32 .*\[%(?:from|to)(?:\+(\d+))?\]", PTX)
        assert [int(place or 0) for place in places] == [i * 16 * threads for i in range(4)]
    assert 4 * 16 * threads == TILE_BYTES


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_cudas_assembler_takes_the_text(architecture, tmp_path):
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("CUDA's ptxas is not installed")
    (tmp_path / "hold.ptx").write_text(PTX)
    said = subprocess.run(
        [ptxas, "-v", f"-arch={architecture}", "hold.ptx", "-o", "hold.cubin"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert " 0 bytes spill stores" in said.stderr


def test_a_driver_that_refuses_says_why():
    with pytest.raises(RuntimeError, match="CUDA's driver: invalid device"):
        HoldKernel(Driver("cuModuleLoadData"), MEMORY, 132)
    kernel = HoldKernel(driver := Driver(), MEMORY, 132)
    driver.refuses = "cuLaunchKernel"
    with pytest.raises(RuntimeError, match="invalid device"):
        kernel(STREAM, 1e-6, GpuShare(), 0)


def test_without_the_driver_sums_only_wait_and_a_note_says_so(monkeypatch):
    def missing(name):
        raise OSError(f"{name}: cannot open shared object file")

    noted: list[str] = []
    slept: list[int] = []
    monkeypatch.setattr(gpu_hold.ctypes, "CDLL", missing)
    monkeypatch.setattr(gpu_hold, "_cycles_a_second", lambda: 1e9)
    monkeypatch.setattr(gpu_hold, "print_note", noted.append)
    monkeypatch.setattr(torch.cuda, "_sleep", slept.append)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: torch.no_grad())
    hold_on.cache_clear()
    hold = hold_on(0)
    hold_on.cache_clear()
    hold(STREAM, 2e-6, GpuShare(24, MIB), MIB)
    assert slept == [2000]
    (note,) = noted
    assert note.startswith("note: on this GPU emulated sums only wait, and take nothing from")
    assert "libcuda.so.1: cannot open shared object file" in note
    assert hold.takes in note and "\n" not in note
