"""Sums held on a CUDA device, and what they take from compute; run with ``pytest -m gpu``."""

import gc
import json

import pytest
import torch

from krakenlm.bench.latency import Setup, measure
from krakenlm.bench.models import contenders
from krakenlm.cli.main import main
from krakenlm.config import WIRINGS, ModelConfig
from krakenlm.emulation.footprint import needs
from krakenlm.emulation.profile_link import read_link
from krakenlm.engine.capture import capture
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.plan.memory import weight_bytes
from krakenlm.ranks.launch import Rank
from krakenlm.transport.collective import WithoutPeers
from krakenlm.transport.gpu_hold import HoldKernel, hold_on
from krakenlm.transport.gpu_share import GpuShare
from krakenlm.transport.links import EmulatedLink, Link

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
MIB = 1 << 20


def seconds(run, repeats: int = 5) -> float:
    """The quickest of some runs, by the device's events."""
    found = []
    for _ in range(repeats + 1):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        start.record()
        run()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return min(found[1:])


def hold(held: float, share: GpuShare, nbytes: int = 0) -> None:
    hold_on(torch.cuda.current_device())(torch.cuda.current_stream(), held, share, nbytes)


@pytest.fixture(autouse=True)
def kernel() -> HoldKernel:
    found = hold_on(torch.cuda.current_device())
    assert isinstance(found, HoldKernel), found.takes
    return found


@pytest.mark.parametrize("held", [20e-6, 200e-6, 5e-3])
@pytest.mark.parametrize("share", [GpuShare(), GpuShare(24, 0), GpuShare(24, 2 * MIB)], ids=str)
def test_a_hold_lasts_as_long_as_it_is_to(held, share):
    # A launch takes some microseconds, and the clock ticks in microseconds on some GPUs.
    assert held - 2e-6 < seconds(lambda: hold(held, share, MIB)) < 1.05 * held + 15e-6


def test_a_hold_keeps_pace_with_nvlink():
    """50 MiB between 8 in a ring: 131 MiB are copied in 330 us."""
    share = GpuShare(24, 131 * MIB)
    assert seconds(lambda: hold(330e-6, share, 50 * MIB)) < 1.1 * 330e-6 + 15e-6


def test_a_hold_copies_bytes(kernel):
    source, target = kernel._memory.view(2, -1)
    source.random_()
    target.zero_()
    hold(100e-6, GpuShare(8, 4 * MIB), 4 * MIB)
    torch.cuda.synchronize()
    assert torch.equal(source[: 4 * MIB], target[: 4 * MIB])
    assert not target[4 * MIB :].any()


def test_multiprocessors_that_are_held_are_taken_from_products():
    """Half of them: products that fill the device take about twice as long beside it."""
    count = torch.cuda.get_device_properties(0).multi_processor_count
    a = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)
    side = torch.cuda.Stream(priority=-1)

    def products() -> None:
        for _ in range(4):
            a @ a

    alone = seconds(products)
    device = torch.cuda.current_device()

    def beside() -> None:
        side.wait_stream(torch.cuda.current_stream())
        hold_on(device)(side, 3 * alone, GpuShare(count // 2, 0), 0)
        products()

    slower = seconds(beside) / alone
    torch.cuda.synchronize()
    assert 1.6 < slower < 3.0

    def with_a_waiting_one() -> None:
        side.wait_stream(torch.cuda.current_stream())
        hold_on(device)(side, 3 * alone, GpuShare(), 0)
        products()

    assert seconds(with_a_waiting_one) / alone < 1.2


def test_held_sums_are_part_of_a_graph_and_hide_behind_compute():
    link = EmulatedLink(WithoutPeers(4, copies=True), Link(gbps=1600, latency_us=50), ranks=4)
    x = torch.randn(1, 1, 512, 4096, device="cuda", dtype=torch.float16)  # 31 + 300 us
    weight = torch.randn(4096, 4096, device="cuda", dtype=torch.float16)

    def both(record) -> torch.Tensor:
        pending = record(link).begin(x)
        y = x[0, 0]
        for _ in range(20):
            y = (y @ weight) * 0.01
        return pending.wait() + y

    def compute_alone(record) -> torch.Tensor:
        y = x[0, 0]
        for _ in range(20):
            y = (y @ weight) * 0.01
        return x + y

    def sum_alone(record) -> torch.Tensor:
        return record(link).begin(x).wait() + 0

    device = torch.device("cuda", torch.cuda.current_device())
    hidden, compute, held = (capture(run, device) for run in (both, compute_alone, sum_alone))
    torch.testing.assert_close(hidden.replay(), compute.replay())
    together, apart, waiting = (seconds(c.replay) for c in (hidden, compute, held))
    assert waiting > 320e-6
    assert together < apart + 0.5 * waiting


@pytest.mark.parametrize("wiring", WIRINGS)
def test_a_replayed_prompt_gives_the_logits_of_an_eager_one(wiring):
    config = ModelConfig(
        wiring=wiring, num_sublayers=2 if WIRINGS[wiring].depends_on_degree else 1,
        hidden_size=64, num_hidden_layers=3, heads_per_sublayer=4, vocab_size=61,
        max_position_embeddings=64,
    )  # fmt: skip
    rank = Rank(0, 1, torch.device("cuda", 0), lambda message: None)
    options = {"emulated_ranks": 2, "link": read_link("nvswitch-a100", "one-shot")}
    engine = Engine.random(config, rank, torch.float32, EngineOptions(**options))
    captured = engine.with_connections(engine.connections)
    captured.options = EngineOptions(**options, graph_prefill=True)
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        prompts = torch.randint(61, (2, 9), generator=generator).tolist()
        found = []
        for each in (engine, captured):
            with each.session(prompts, 3) as session:
                first = session.prefill().clone()
                found.append((first, session.decode(first.argmax(1)).clone()))
        torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-5)


def test_memory_is_what_was_said_beforehand():
    models = contenders("1.3B", ["standard", "kraken"], ["hardware-friendly"], sublayers=8)
    setup = Setup(
        devices=8, input_len=512, output_len=1, iterations=2, warm_up=1, dtype="float16",
        device="cuda", link=read_link("nvswitch-h100", "fastest"), emulate_peers=True,
        graph_prefill=True,
    )  # fmt: skip
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    measured = measure(models, setup, title="memory")
    assert measured is not None
    used = torch.cuda.max_memory_reserved() - before
    said = needs(models, setup, torch.float16).nbytes
    assert said / 3 < used < said
    report = measured.report
    assert report.emulation == (
        "emulated: one rank of 8 alone; sums hold multiprocessors and copy bytes"
    )
    for result in report.results:
        assert result.ttft_ms.median > result.no_comm_ttft_ms.median


def test_one_ranks_weights_are_made_on_the_device():
    (model,) = contenders("6.7B", ["kraken"], ["hardware-friendly"], sublayers=8)
    rank = Rank(0, 1, torch.device("cuda", 0), lambda message: None)
    options = EngineOptions(emulated_ranks=8, link=Link(gbps=1000))
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    engine = Engine.random(model.config, rank, torch.float16, options)
    peak = torch.cuda.max_memory_allocated() - before
    wanted = weight_bytes(engine.shard, 2)
    assert wanted <= peak < 1.02 * wanted + 64 * MIB


def test_a_cell_of_the_papers_grid(tmp_path):
    grid = ["--sizes", "1.3B", "--devices", "8", "--input-len", "128,2048", "--wirings", "kraken"]
    main(["bench", "paper-grid", str(tmp_path), *grid])
    found = json.loads((tmp_path / "paper-grid.json").read_text())
    assert found["emulated"] and found["graph_prefill"] and found["dtype"] == "float16"
    assert found["geomean_cells"] == {"kraken": 2}
    for cell in found["cells"]:
        for model in cell["models"]:
            assert 0.1 < model["ttft_ms"]["median"] < 1000
            assert model["allreduces"] == {"standard": 48, "kraken": 24}[model["wiring"]]
