"""One device that stands for several: links by name, what fits, what is allocated."""

import dataclasses
import json
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from krakenlm.bench.latency import Setup
from krakenlm.bench.models import contenders
from krakenlm.bench.results import LatencyReport
from krakenlm.cli.main import main
from krakenlm.config import WIRINGS
from krakenlm.emulation import footprint as footprints
from krakenlm.emulation.footprint import Room, check_fits, memory, needs
from krakenlm.emulation.profile_link import ProfileLink, read_link
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.rank_model import RankModel
from krakenlm.errors import KrakenError
from krakenlm.model.decoder import Decoder
from krakenlm.model.shard import split
from krakenlm.plan.link import LinkProfile
from krakenlm.plan.memory import Memory, weight_bytes
from krakenlm.ranks.launch import Rank
from krakenlm.transport.collective import WithoutCommunication, WithoutPeers
from krakenlm.transport.connect import emulated_peers
from krakenlm.transport.gpu_share import GpuShare, of_multimem, of_one_shot, of_ring
from krakenlm.transport.links import EmulatedLink, Link

pytestmark = pytest.mark.usefixtures("own_signals")
GIB = 2**30


@pytest.mark.parametrize(("nbytes", "ranks"), [(1024, 4), (1 << 20, 8), (50_331_648, 8)])
@pytest.mark.parametrize("kernel", ["nccl", "one-shot", "multimem"])
def test_a_named_link_takes_the_planners_time_and_its_kernels_share(kernel, nbytes, ranks):
    profile = LinkProfile.named("nvswitch-h100")
    found = ProfileLink(profile, kernel).carry(nbytes, ranks)
    cost = profile.sums(kernel, on_cpu=False)(nbytes, ranks)
    assert (found.on_wire, found.behind) == (cost.wire, cost.behind)
    shares = {
        "nccl": of_ring(nbytes, ranks, 280.0),
        "one-shot": of_one_shot(nbytes, ranks),
        "multimem": of_multimem(nbytes, ranks),
    }
    assert found.share == shares[kernel]


def test_the_fastest_kernel_is_another_for_small_and_large_messages():
    profile = LinkProfile.named("nvswitch-h100")
    link = ProfileLink(profile, "fastest")
    cheapest = profile.sums("fastest", on_cpu=False)
    for nbytes in (1 << 12, 1 << 20, 1 << 25):
        assert link.carry(nbytes, 8).on_wire == cheapest(nbytes, 8).wire
    assert link.carry(1 << 12, 8).share == of_one_shot(1 << 12, 8)
    assert link.carry(1 << 25, 8).share == of_multimem(1 << 25, 8)
    again = pickle.loads(pickle.dumps(link))
    assert again.carry(1 << 20, 8) == link.carry(1 << 20, 8)
    assert str(link) == "nvswitch-h100, fastest"


def test_the_planner_gets_a_link_that_takes_no_compute():
    link = ProfileLink(LinkProfile.named("1gbe"))
    with_compute = link.profile.sums(None, on_cpu=True)(1000, 2)
    without = link.planned.sums(None, on_cpu=True)(1000, 2)
    assert with_compute.begin > 0 and with_compute.wait > 0
    assert (without.begin, without.wait, without.wire) == (0.0, 0.0, with_compute.wire)
    carriage = link.carry(1000, 2)  # whose latency the next message does not wait for
    assert (carriage.on_wire, carriage.behind) == (with_compute.wire, with_compute.behind)
    assert carriage.behind > 0


def test_links_are_read_by_name_and_by_their_numbers():
    assert read_link("real") is None
    assert read_link("gbps=1,latency_us=5") == Link(gbps=1, latency_us=5)
    assert str(read_link("pcie4")) == "pcie4, nccl"
    assert str(read_link("nvswitch-a100", "one-shot")) == "nvswitch-a100, one-shot"


@pytest.mark.parametrize(
    ("link", "kernel", "said"),
    [
        ("nvswitch-b300", None, "--link nvswitch-b300: write real, or for instance gbps="),
        (
            "nvswitch-a100",
            "multimem",
            "--allreduce multimem: choose one of nccl, one-shot, fastest",
        ),
        ("gbps=1", "nccl", "--allreduce nccl: --link gbps=1 has one way to sum: leave it out"),
        ("real", "nccl", "--allreduce nccl: --link real has one way to sum"),
    ],
)
def test_links_and_kernels_that_do_not_exist_are_refused(link, kernel, said):
    with pytest.raises(KrakenError, match=said) as refusal:
        read_link(link, kernel)
    assert "\n" not in str(refusal.value)


def test_on_gpus_messages_are_put_together_as_a_process_group_does():
    branches = torch.randn(1, 2, 3, 4)
    for copies in (True, False):
        total = WithoutPeers(8, copies=copies).begin(branches).wait()
        assert torch.equal(total, branches)
        assert (total.data_ptr() == branches.data_ptr()) != copies
    two = torch.randn(2, 2, 3, 4)
    for device, copies in (("cpu", False), ("cuda", True)):
        shard = split(tiny.model_config(wiring="standard", num_sublayers=1), 2)[0]
        alone = emulated_peers(shard, torch.device(device)).streams
        assert torch.equal(alone.begin(two).wait(), two.sum(0, keepdim=True))
        assert alone._copies == copies and alone.name == "emulated-peers"


@pytest.mark.parametrize("alone", [True, False])
def test_a_real_sum_takes_its_share_by_itself(alone):
    sent = []

    class Noted:
        takes = "multiprocessors"

        def send(self, *message):
            sent.append(message)
            return SimpleNamespace(wait=lambda: None)

    inner = WithoutPeers(4, copies=False) if alone else WithoutCommunication(4)
    link = EmulatedLink(inner, Link(gbps=1600, latency_us=1), ranks=4)
    link._line = Noted()
    x = torch.ones(2, 1, 512, 512)
    link.begin(x).wait()
    link.gather(x[0])
    share = of_ring(1 << 20, 4, 200.0)
    assert [message[2:] for message in sent] == [
        (share if alone else GpuShare(), 1 << 20),
        (of_ring(4 << 20, 4, 200.0) if alone else GpuShare(), 4 << 20),
    ]
    assert link.takes == ("multiprocessors" if alone else "")
    assert sent[0][:2] == pytest.approx((1.5 * 2**20 * 8e-9 / 1600, 6e-6))


class Allocated(TorchDispatchMode):
    """Adds up the bytes of all tensors of a type that come to be."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype, self.nbytes, self.largest = dtype, 0, 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        made = not func.is_view and not func._schema.is_mutable
        if made and isinstance(result, torch.Tensor) and result.dtype == self.dtype:
            self.nbytes += result.nbytes
            self.largest = max(self.largest, result.nbytes)
        return result


def random_model(config, device: str, ranks: int) -> tuple[RankModel, Allocated]:
    rank = Rank(0, 1, torch.device(device), lambda message: None)
    options = EngineOptions(emulated_ranks=ranks, link=Link(gbps=1.0), pack=False)
    with Allocated(torch.float16) as allocated:
        return RankModel.random(config, rank, torch.float16, options), allocated


@pytest.mark.parametrize("wiring", ["standard", "kraken", "shared"])
def test_random_weights_are_one_ranks_worth_and_made_in_place(wiring):
    config = tiny.model_config(wiring=wiring, num_sublayers=4, heads_per_sublayer=2)
    model, allocated = random_model(config, "cpu", 4)
    assert allocated.nbytes == weight_bytes(model.shard, 2)
    assert model.decoder.layers[0].attention.qkv.weight.std() > 0
    assert weight_bytes(model.shard, 2) < weight_bytes(split(config, 1)[0], 2)


@pytest.mark.parametrize(
    ("size", "ranks", "wiring", "gpu_gib"),
    [("65B", 8, "kraken", 80), ("175B", 8, "standard", 141), ("175B", 8, "kraken", 141)],
)
def test_the_papers_sizes_fit_one_gpu_and_nothing_larger_than_a_rank_is_made(
    size, ranks, wiring, gpu_gib, monkeypatch
):
    monkeypatch.setattr(Decoder, "initialise", lambda self: None)  # in place, and slow on meta
    models = contenders(size, [wiring], ["hardware-friendly"], sublayers=ranks)
    model, allocated = random_model(models[0].config, "meta", ranks)
    whole = weight_bytes(split(models[0].config, 1)[0], 2)
    assert allocated.nbytes == weight_bytes(model.shard, 2) < whole / 4
    assert allocated.largest <= 3 * GIB  # the embeddings of 175B
    setup = Setup(
        devices=ranks, input_len=2048, output_len=1, dtype="float16", emulate_peers=True,
        link=Link(gbps=1000), graph_prefill=True,
    )  # fmt: skip
    # 65B and 175B beside the standard model, as the paper's grid takes them.
    both = [*contenders(size, ["standard"], ["published"], sublayers=ranks), *models][-2:]
    room = Room("a GPU", int((gpu_gib - 2) * GIB))
    said = check_fits(both, setup, room)
    assert said.startswith(f"one rank of {ranks} needs about ")
    assert f"of {gpu_gib - 2:.2f} free on a GPU" in said


def test_what_does_not_fit_is_refused_in_one_line_before_anything_is_made(monkeypatch):
    models = contenders("175B", ["standard", "parallel"], ["published"], sublayers=8)
    setup = Setup(
        devices=4, input_len=128, output_len=1, dtype="float16", emulate_peers=True,
        link=Link(gbps=1000),
    )  # fmt: skip
    said = "one rank of 4 needs about .* GiB in float16 .weights: standard .*, parallel .*a GPU has"
    with pytest.raises(KrakenError, match=said + " 78.00 GiB free: take fewer models") as refusal:
        check_fits(models, setup, Room("a GPU", 78 * GIB))
    assert "\n" not in str(refusal.value)
    assert check_fits(models[:1], setup, Room("a host", None)).endswith("standard 82.20)")


def test_chunks_of_a_prompt_share_weights_and_buffers_are_used_in_turns():
    setup = Setup(devices=2, input_len=64, output_len=8, emulate_peers=True, link=Link(gbps=1))
    one = contenders("124M", ["standard"], ["published"], sublayers=2)
    chunked = contenders("124M", ["standard"], ["published"], sublayers=2, prefill_chunks=[1, 2])
    room = Room("a host", 8 * GIB)
    more = [check_fits(models, setup, room).split()[6] for models in (one, chunked)]
    assert float(more[1]) - float(more[0]) < 0.1  # a cache, and not 0.3 GiB of weights


def test_models_in_turn_need_their_weights_two_caches_each_and_one_s_buffers(monkeypatch):
    found = {"standard": Memory(100, 10, 7), "parallel": Memory(50, 5, 9)}
    monkeypatch.setattr(footprints, "memory", lambda model, setup, dtype: found[model.label])
    models = contenders("124M", list(found), ["published"], sublayers=2)
    setup = Setup(devices=2, emulate_peers=True, link=Link(gbps=1))
    eager = 100 + 50 + 2 * (10 + 5) + 9 + footprints._LIBRARIES
    assert needs(models, setup, torch.float16).nbytes == eager
    captured = needs(models, dataclasses.replace(setup, graph_prefill=True), torch.float16)
    assert captured.nbytes == eager + 2 * (7 + 9)


def test_the_memory_of_a_model_is_what_the_engine_holds():
    (model,) = contenders("124M", ["kraken"], ["published"], sublayers=2)
    model = model.__class__(
        config=model.config.replace(num_hidden_layers=2, vocab_size=500), label="small"
    )
    setup = Setup(
        devices=2, input_len=40, output_len=4, emulate_peers=True, link=Link(gbps=1),
        graph_prefill=True,
    )  # fmt: skip
    found = memory(model, setup, torch.float32)
    rank = Rank(0, 1, torch.device("cpu"), lambda message: None)
    engine = Engine.random(model.config, rank, torch.float32, setup.options(model))
    assert found.weights == weight_bytes(engine.shard, 4)
    with engine.session([[1] * 40], 4) as session:
        assert found.cache == session.cache.nbytes
    assert found.buffers > 0


@pytest.mark.alone
def test_a_named_link_is_emulated_from_the_command_line_and_said_so(tmp_path, capsys, monkeypatch):
    from test_bench_cli import tiny_size

    monkeypatch.setattr("sys.argv", ["krakenlm", "bench", "latency"])
    target = tmp_path / "latency.json"
    with tiny_size():
        main(
            [
                *("bench", "latency", "--size", "tiny", "--wirings", "standard,shared"),
                *("--devices", "4", "--emulate-peers", "--link", "100mbit", "--allreduce"),
                *("sockets", "--graph-prefill", "--input-len", "12", "--output-len", "3"),
                *("--num-iters", "2", "--num-iters-warmup", "0", "--dtype", "float32"),
                *("--threads", "1", "--breakdown", "--output-json", str(target)),
            ]
        )
    said = capsys.readouterr()
    assert "one rank of 4 needs about" in said.err
    assert "tiny: 12 tokens in, 3 out, emulated" in said.out
    report = LatencyReport.load(target)
    assert report.link == "emulated: 100mbit, sockets"
    assert report.emulation == "emulated: one rank of 4 alone"
    assert report.emulation in report.conditions and report.graph_prefill
    cost = LinkProfile.named("100mbit").sums("sockets", on_cpu=False)
    for result in report.results:
        assert result.allreduces == WIRINGS[result.wiring].allreduces(2)
        alone = 1000 * (cost(result.message_bytes, 4).wire + cost(result.message_bytes, 4).behind)
        assert result.allreduce_ms.median == pytest.approx(alone, rel=0.5)
        assert result.breakdown_ms["gemm"] > 0
    assert report.results[0].message_bytes == 12 * 32 * 4
    assert json.loads(target.read_text())["emulation"] == report.emulation


def test_more_than_there_is_ends_in_one_line(monkeypatch, capsys):
    monkeypatch.setattr(footprints, "room_on", lambda device: Room("this host", GIB))
    arguments = ["--size", "65B", "--devices", "8", "--emulate-peers", "--link", "pcie5"]
    with pytest.raises(SystemExit) as end:
        main(["bench", "latency", "--wirings", "standard", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "this host has 1.00 GiB free" in error


def test_room_on_a_host_is_what_the_system_says():
    room = footprints.room_on(torch.device("cpu"))
    assert room.where == "this host"
    assert room.free is None or 0 < room.free < 2**50
