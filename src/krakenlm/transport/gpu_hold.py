"""A kernel that takes of a GPU what an AllReduce takes, for a given time, with nobody to talk to.

Its blocks keep a multiprocessor each to themselves, by asking for all of its shared memory, and
copy bytes from memory to memory at an even pace until their time is over. It is written in PTX,
which the driver itself assembles: neither CUDA's compiler nor Triton, which needs a C compiler,
has to be there. It can be part of a CUDA graph.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple, Protocol

import torch

from krakenlm.console import print_note
from krakenlm.transport.gpu_share import GpuShare

_THREADS = 512
TILE_BYTES = 4 * 16 * _THREADS
"""That a block copies at once: four times 16 bytes a thread, all under way together."""
_REGION_TILES = 1024
"""Messages beyond 32 MiB go through the same memory again: it is more than caches hold."""
_CALIBRATION_CYCLES = 20_000_000
# From cuda.h.
_MAX_SHARED_MEMORY_OPTIN, _MAX_DYNAMIC_SHARED_SIZE = 97, 8

PTX = """
.version 6.3
.target sm_75
.address_size 64

// For each of so many tiles: copy one, then wait until it is due. At the end, wait for the rest.
.visible .entry hold(
    .param .u64 nanoseconds,
    .param .u64 interval,       // nanoseconds of a tile
    .param .u32 tiles,          // of each block
    .param .u32 region,         // tiles of memory, used round and round
    .param .u64 source,
    .param .u64 target
)
.maxntid 512, 1, 1
{
    .reg .pred %again, %waits;
    .reg .u32 %tiles, %region, %tile, %blocks, %place, %thread;
    .reg .u32 %a<4>, %b<4>, %c<4>, %d<4>;
    .reg .u64 %all, %interval, %due, %begun, %now, %source, %target, %at, %from, %to;

    mov.u64 %begun, %globaltimer;
    ld.param.u64 %all, [nanoseconds];
    ld.param.u64 %interval, [interval];
    ld.param.u32 %tiles, [tiles];
    ld.param.u32 %region, [region];
    ld.param.u64 %source, [source];
    ld.param.u64 %target, [target];
    cvta.to.global.u64 %source, %source;
    cvta.to.global.u64 %target, %target;
    mov.u32 %thread, %tid.x;
    setp.eq.u32 %waits, %thread, 0;     // one thread looks at the clock
    mov.u32 %blocks, %nctaid.x;
    mov.u64 %due, 0;
    mov.u32 %tile, 0;

NEXT:
    setp.ge.u32 %again, %tile, %tiles;
    @%again bra REST;
    mov.u32 %place, %ctaid.x;
    mad.lo.u32 %place, %tile, %blocks, %place;
    rem.u32 %place, %place, %region;
    mul.wide.u32 %at, %place, 32768;    // bytes of a tile
    mul.wide.u32 %from, %thread, 16;
    add.u64 %at, %at, %from;
    add.u64 %from, %source, %at;
    add.u64 %to, %target, %at;
    ld.global.v4.u32 {%a0, %a1, %a2, %a3}, [%from];
    ld.global.v4.u32 {%b0, %b1, %b2, %b3}, [%from+8192];
    ld.global.v4.u32 {%c0, %c1, %c2, %c3}, [%from+16384];
    ld.global.v4.u32 {%d0, %d1, %d2, %d3}, [%from+24576];
    st.global.v4.u32 [%to], {%a0, %a1, %a2, %a3};
    st.global.v4.u32 [%to+8192], {%b0, %b1, %b2, %b3};
    st.global.v4.u32 [%to+16384], {%c0, %c1, %c2, %c3};
    st.global.v4.u32 [%to+24576], {%d0, %d1, %d2, %d3};
    add.u64 %due, %due, %interval;
    @!%waits bra COPIED;
EARLY:
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %begun;
    setp.lt.u64 %again, %now, %due;
    @%again bra EARLY;
COPIED:
    bar.sync 0;
    add.u32 %tile, %tile, 1;
    bra NEXT;

REST:
    @!%waits bra DONE;
LAST:
    mov.u64 %now, %globaltimer;
    sub.u64 %now, %now, %begun;
    setp.lt.u64 %again, %now, %all;
    @%again bra LAST;
DONE:
    ret;
}
"""


class Launch(NamedTuple):
    """How the kernel is started.

    Attributes:
        blocks: each on a multiprocessor.
        threads: of each.
        alone: nothing else fits on their multiprocessors.
        nanoseconds: until the last one ends.
        interval: nanoseconds of a tile.
        tiles: that each block copies.
        region: tiles of memory that they go through.
    """

    blocks: int
    threads: int
    alone: bool
    nanoseconds: int
    interval: int
    tiles: int
    region: int


def launch_of(seconds: float, share: GpuShare, nbytes: int, multiprocessors: int) -> Launch:
    """How to hold a message for so long.

    Args:
        seconds: for so long.
        share: what that takes of the GPU; without multiprocessors it only waits.
        nbytes: of the message: larger ones go through more memory.
        multiprocessors: of the GPU; one at least is left to others.
    """
    ns = round(seconds * 1e9)
    if share.multiprocessors == 0:
        return Launch(1, 32, False, ns, 0, 0, 1)
    blocks = max(1, min(share.multiprocessors, multiprocessors - 1))
    tiles = -(-share.copied_bytes // (blocks * TILE_BYTES))
    region = min(max(-(-nbytes // TILE_BYTES), 1), _REGION_TILES)
    return Launch(blocks, _THREADS, True, ns, ns // max(tiles, 1), tiles, region)


class Hold(Protocol):
    """Keeps a stream busy for a time."""

    takes: str
    """What it takes from compute, for people."""

    def __call__(
        self, stream: torch.cuda.Stream, seconds: float, share: GpuShare, nbytes: int
    ) -> None:
        """Put it on a stream."""
        ...


class HoldKernel:
    """The kernel, loaded on the current device.

    Args:
        driver: CUDA's.
        memory: 64 MiB on the device, to copy in.
        multiprocessors: of the device.

    Raises:
        RuntimeError: the driver does not take it.
    """

    takes = "sums hold multiprocessors and copy bytes"

    def __init__(self, driver: Any, memory: torch.Tensor, multiprocessors: int) -> None:
        self._driver = driver
        self._memory = memory
        self._multiprocessors = multiprocessors
        module, self._function = ctypes.c_void_p(), ctypes.c_void_p()
        self._check(driver.cuModuleLoadData(ctypes.byref(module), PTX.encode()))
        self._check(driver.cuModuleGetFunction(ctypes.byref(self._function), module, b"hold"))
        device, most = ctypes.c_int(), ctypes.c_int()
        self._check(driver.cuCtxGetDevice(ctypes.byref(device)))
        self._check(
            driver.cuDeviceGetAttribute(ctypes.byref(most), _MAX_SHARED_MEMORY_OPTIN, device)
        )
        self._shared_bytes = most.value
        self._check(
            driver.cuFuncSetAttribute(self._function, _MAX_DYNAMIC_SHARED_SIZE, self._shared_bytes)
        )

    def __call__(
        self, stream: torch.cuda.Stream, seconds: float, share: GpuShare, nbytes: int
    ) -> None:
        """Put it on a stream."""
        launch = launch_of(seconds, share, nbytes, self._multiprocessors)
        source = self._memory.data_ptr()
        arguments = (
            ctypes.c_uint64(launch.nanoseconds),
            ctypes.c_uint64(launch.interval),
            ctypes.c_uint32(launch.tiles),
            ctypes.c_uint32(launch.region),
            ctypes.c_uint64(source),
            ctypes.c_uint64(source + self._memory.nbytes // 2),
        )
        pointers = (ctypes.c_void_p * len(arguments))(*map(ctypes.addressof, arguments))
        grid, block = (launch.blocks, 1, 1), (launch.threads, 1, 1)
        shared = self._shared_bytes if launch.alone else 0
        handle = ctypes.c_void_p(stream.cuda_stream)
        self._check(
            self._driver.cuLaunchKernel(
                self._function, *grid, *block, shared, handle, pointers, None
            )
        )

    def _check(self, code: int) -> None:
        if code:
            text = ctypes.c_char_p()
            self._driver.cuGetErrorString(code, ctypes.byref(text))
            said = text.value.decode() if text.value else f"error {code}"
            raise RuntimeError(f"CUDA's driver: {said}")


class WaitingHold:
    """Only waits, on one thread: where the driver does not take the kernel.

    Args:
        why: for people.
    """

    def __init__(self, why: str) -> None:
        self.takes = f"sums only wait, and take nothing from compute ({why})"
        self._cycles_a_second = _cycles_a_second()

    def __call__(
        self, stream: torch.cuda.Stream, seconds: float, share: GpuShare, nbytes: int
    ) -> None:
        """Put it on a stream."""
        with torch.cuda.stream(stream):
            torch.cuda._sleep(int(seconds * self._cycles_a_second))  # type: ignore[no-untyped-call]


@cache
def hold_on(device: int) -> Hold:
    """The kernel for a GPU; it must be the current one, and nothing be captured."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
        memory = torch.zeros(2 * _REGION_TILES * TILE_BYTES, dtype=torch.uint8, device=device)
        properties = torch.cuda.get_device_properties(device)
        return HoldKernel(driver, memory, properties.multi_processor_count)
    except (OSError, AttributeError, RuntimeError) as error:
        waiting = WaitingHold(str(error))
        print_note(f"note: on this GPU emulated {waiting.takes}")
        return waiting


class DeviceLine:
    """A modelled link on a GPU: one stream is the wire, another the flight behind it.

    The host runs ahead of the device, so its clock says nothing.
    """

    def __init__(self) -> None:
        # Of high priority, or a kernel that fills the device would delay the start of a sum.
        self._wire = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
        self._flight = torch.cuda.Stream(priority=-1)  # type: ignore[no-untyped-call]
        self._hold = hold_on(torch.cuda.current_device())

    @property
    def takes(self) -> str:
        """What sums take from compute."""
        return self._hold.takes

    def send(self, on_wire: float, behind: float, share: GpuShare, nbytes: int) -> "OnDevice":
        """Hold a message for as long as it is on the wire, and then in flight."""
        last = self._wire
        last.wait_stream(torch.cuda.current_stream())
        self._hold(last, on_wire, share, nbytes)
        if behind > 0.0:
            last = self._flight
            last.wait_stream(self._wire)
            self._hold(last, behind, GpuShare(), 0)
        return OnDevice(last.record_event())


class OnDevice(NamedTuple):
    """A message under way."""

    event: torch.cuda.Event

    def wait(self) -> None:
        """Make the current stream wait for it."""
        torch.cuda.current_stream().wait_event(self.event)


def _cycles_a_second() -> float:
    """How fast the clock runs that ``torch.cuda._sleep`` counts."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    for _ in range(2):  # the first one also wakes the device up
        start.record()
        torch.cuda._sleep(_CALIBRATION_CYCLES)  # type: ignore[no-untyped-call]
        end.record()
        end.synchronize()
    return 1000 * _CALIBRATION_CYCLES / start.elapsed_time(end)
