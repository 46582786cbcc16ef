"""Profiles and what they say: interpolation, rooflines, sums over links, memory."""

import dataclasses
import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import tiny
from krakenlm.bench.models import Contender
from krakenlm.bench.ranks import watched
from krakenlm.config import model_config
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.rank_model import RankModel
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.model import cached_attention
from krakenlm.model.attention import causal_attention
from krakenlm.model.reduce import Ready
from krakenlm.model.shard import split
from krakenlm.plan.constants import Constant, names
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.interpolation import Scattered, Series
from krakenlm.plan.link import FASTEST, LinkProfile
from krakenlm.plan.memory import cache_bytes, memory_of, room, weight_bytes
from krakenlm.plan.planner import Setup, plan
from krakenlm.plan.profile_files import read_profiles, write_machine
from krakenlm.plan.program import Operator
from krakenlm.plan.recorder import Recorder
from krakenlm.plan.trace import Pass, trace
from krakenlm.ranks.launch import Rank
from krakenlm.strict import from_plain
from krakenlm.transport.collective import sum_branches
from krakenlm.transport.links import Link

A100 = DeviceProfile.named("a100-80gb")
NVSWITCH = LinkProfile.named("nvswitch-a100")


def gemm(m, k, n, groups=1):
    return Operator("gemm", "gemm", (groups, m, k, n), 0, 0)


def test_points_of_a_series_are_met_and_between_them_logarithms_are_interpolated():
    series = Series([(1.0, 2.0), (100.0, 8.0)])
    assert series.correct(1.0, 5.0) == (10.0, True)
    assert series.correct(100.0, 5.0).seconds == pytest.approx(40.0)
    # In the middle of the logarithms, the geometric mean.
    assert series.correct(10.0, 5.0).seconds == pytest.approx(5.0 * 4.0)


def test_beyond_a_series_its_last_ratio_stays_and_counts_as_measured_for_a_while():
    series = Series([(10.0, 2.0), (100.0, 8.0)])
    assert series.correct(1000.0, 1.0) == (pytest.approx(8.0), False)
    assert series.correct(6.0, 1.0) == (pytest.approx(2.0), True)


def test_scattered_points_are_met_and_fade_into_the_formula():
    points = Scattered([((64.0, 64.0), 3.0), ((1024.0, 64.0), 0.5)])
    assert points.correct((64.0, 64.0), 7.0) == (pytest.approx(21.0), True)
    near = points.correct((64.0, 90.0), 7.0)
    assert 7.0 < near.seconds < 21.0 and near.from_table
    assert points.correct((64.0, 64.0 * 5), 7.0) == (7.0, False)
    assert Scattered([]).correct((1.0,), 7.0) == (7.0, False)


@pytest.mark.parametrize("name", names("devices"))
def test_every_device_has_a_source_for_each_constant_and_a_link(name):
    device = DeviceProfile.named(name)
    assert device.name == name
    constants = [v for v in vars(device).values() if isinstance(v, Constant)]
    for constant in (*constants, *device.peak_tflop_per_second.values()):
        assert len(constant.source) > 5
    LinkProfile.named(device.usual_link)
    costs = device.costs("bfloat16")
    assert 0.0 < costs(gemm(64, 512, 512)).seconds < costs(gemm(4096, 4096, 4096)).seconds


@pytest.mark.parametrize("name", names("links"))
def test_every_link_takes_longer_for_more_bytes_and_more_ranks(name):
    link = LinkProfile.named(name)
    assert link.name == name
    for kernel in link.kernels.values():
        for value in vars(kernel).values():
            assert not isinstance(value, Constant) or len(value.source) > 5
    for kernel in (*link.kernels, FASTEST):
        sums = link.sums(kernel, on_cpu=True)
        few, many, wide = sums(1 << 14, 2), sums(1 << 24, 2), sums(1 << 24, 8)
        assert 0.0 < few.alone < many.alone < wide.alone or link.kernels[kernel].algorithm == (
            "multimem"
        )


def test_names_have_units():
    for profile in (A100, NVSWITCH.kernels["nccl"]):
        for name, value in vars(profile).items():
            if isinstance(value, Constant):
                endings = ("_gib", "_us", "_second", "_per_byte", "_elements", "multiprocessors")
                assert (
                    name.endswith(endings)
                    or "share" in name
                    or "slowdown" in name
                    or (name == "fused_head_dim")
                )


def test_measured_points_are_met():
    costs = A100.costs("float16")
    for m, k, n, us in A100.tables[0].rows_us:
        estimate = costs(gemm(m, k, n))
        assert estimate == (pytest.approx(us * 1e-6), True)
    sums = NVSWITCH.sums("nccl", on_cpu=False)
    assert sums(65536, 4).alone == pytest.approx(22.93e-6) and sums(65536, 4).from_table
    # Of eight ranks nothing was measured: the ring's formula, as far off as for four.
    assert sums(65536, 8).alone > sums(65536, 4).alone and not sums(65536, 8).from_table


def test_formulas_alone_are_near_the_measured_products():
    bare = dataclasses.replace(A100, tables=()).costs("float16")
    for m, k, n, us in A100.tables[0].rows_us:
        assert bare(gemm(m, k, n)).seconds == pytest.approx(us * 1e-6, rel=0.12)


def test_a_roofline_by_hand():
    values = dataclasses.asdict(A100)
    for name, value in {
        "bandwidth_gb_per_second": 100.0, "share_of_bandwidth": 0.5, "gemm_share_of_peak": 0.5,
        "attention_share_of_peak": 0.25, "kernel_us": 10.0, "multiprocessors": 4,
        "gemm_tile_elements": 64, "unaligned_gemm_slowdown": 3.0,
    }.items():  # fmt: skip
        values[name]["value"] = float(value)
    values["peak_tflop_per_second"]["float16"]["value"] = 1.0
    device = from_plain(DeviceProfile, {**values, "tables": []})
    costs = device.costs("float16")
    # Bytes: 2 (64 + 64 x 64 + 64) / 50 GB/s.
    assert costs(gemm(1, 64, 64)).seconds == pytest.approx(2 * (64 * 64 + 128) / 5e10 + 1e-5)
    # Four tiles are one full wave: 2 x 128^2 x 256 operations at 0.5 TFLOP/s.
    assert costs(gemm(128, 256, 128)).seconds == pytest.approx(2 * 128 * 256 * 128 / 5e11 + 1e-5)
    # Six are two waves, three quarters full.
    six = 2 * 192 * 256 * 128 / 5e11 / 0.75
    assert costs(gemm(192, 256, 128)).seconds == pytest.approx(six + 1e-5)
    # K is no multiple of 8.
    odd = 3 * 2 * 128 * 255 * 128 / 5e11
    assert costs(gemm(128, 255, 128)).seconds == pytest.approx(odd + 1e-5)
    # Four heads of one tile each fill the wave; half of the scores and the diagonal count.
    attention = Operator("attention", "attention", (1, 4, 4, 64, 64, 64), 0, 0)
    flops = 4 * 4 * 64 * (64 * 65 / 2)
    assert costs(attention).seconds == pytest.approx(flops / 2.5e11 + 1e-5)
    move = Operator("other", "move", (), 0, 5_000_000)
    assert costs(move).seconds == pytest.approx(1e-4 + 1e-5)


def test_heads_too_wide_to_be_fused_write_their_scores_out():
    costs = A100.costs("float16")
    fused = Operator("attention", "attention", (1, 8, 8, 2048, 2048, 256), 0, 0)
    wide = Operator("attention", "attention", (1, 8, 8, 2048, 2048, 264), 0, 0)
    assert costs(wide).seconds > 1.2 * costs(fused).seconds


@pytest.mark.parametrize("ranks", [2, 4])
def test_a_link_by_hand_is_what_emulated_links_model(ranks):
    link = Link(gbps=8.0, latency_us=50.0)
    cost = LinkProfile.named("50,8").sums(None, on_cpu=True)(1_000_000, ranks)
    assert cost.wire == pytest.approx(link.seconds_on_wire(1_000_000, ranks))
    assert cost.behind == pytest.approx(link.seconds_behind(ranks))
    assert LinkProfile.named("gbps=8,latency_us=50") == LinkProfile.named("50,8")


def test_one_shot_is_for_small_messages_and_the_fastest_knows():
    one_shot, nccl, fastest = (
        NVSWITCH.sums(kernel, on_cpu=False) for kernel in ("one-shot", "nccl", FASTEST)
    )
    assert fastest(1 << 12, 8) == one_shot(1 << 12, 8)
    assert fastest(1 << 28, 8) == nccl(1 << 28, 8)


def test_sums_take_compute_time_on_cpus_alone():
    link = LinkProfile.named("1gbe")
    assert link.sums(None, on_cpu=True)(1 << 20, 2).begin > 0
    assert link.sums(None, on_cpu=False)(1 << 20, 2).begin == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kind = 'device'", "schema_version is missing|is missing"),
        ("kind = 'engine'", "kind='engine': a profile is of kind device, link or machine"),
        ("kind = [", "not valid TOML"),
    ],
)
def test_profiles_that_are_none_are_refused(tmp_path, text, said):
    path = tmp_path / "own.toml"
    path.write_text(text)
    with pytest.raises(KrakenError, match=said) as refusal:
        read_profiles([path])
    assert str(path) in str(refusal.value)


@pytest.mark.parametrize("link", ["nvswitch-h100", "1gbe"])
def test_a_machine_that_is_written_is_read_as_it_was(tmp_path, link):
    path = tmp_path / "machine.toml"
    wanted = {"device": A100, "link": LinkProfile.named(link)}
    write_machine(path, **wanted)
    assert read_profiles([path]) == wanted
    write_machine(path, A100)
    assert read_profiles([path]) == {"device": A100}
    with pytest.raises(KrakenError, match="a device was given already"):
        read_profiles([path, path])
    path.write_text(path.read_text() + "[cable]\ncolour = 1\n")
    with pytest.raises(KrakenError, match="unknown key 'cable'"):
        read_profiles([path])


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory_gib": {"value": -1.0, "basis": "assumed", "source": "me"}}, "memory_gib=-1"),
        ({"memory_gib": 80.0}, "memory_gib"),
        ({"colour": "green"}, "unknown key 'colour'"),
        ({"schema_version": 9}, "schema_version=9"),
        ({"tables": [{"operator": "gemm", "dtype": "float16", "source": "me", "rows_us": [[1.0]]}]},
         r"tables\[0\].rows_us\[0\]=\[1.0\]: needs 4"),
    ],
)  # fmt: skip
def test_profiles_are_read_strictly(change, said):
    with pytest.raises(ConfigError, match=said):
        from_plain(DeviceProfile, {**dataclasses.asdict(A100), **change})


def test_llmcompass_layer_is_met_within_a_tenth():
    # One layer of GPT-3 175B, batch 8, 2,048 tokens, 4 A100: 66.8 ms, of which its two AllReduces
    # 5.78 (github.com/PrincetonUniversity/LLMCompass, ae/figure5/ijkl). The difference between
    # two models that differ in a layer is a layer.
    setup = Setup(device=A100, link=NVSWITCH, kernel="nccl", batch_size=8, graph_prefill=True)
    config = model_config("175B")
    two, three = (
        plan(
            Contender(config=config.replace(num_hidden_layers=n), label=""), 4, 2048, setup
        ).prefill
        for n in (2, 3)
    )
    assert 1e3 * (three.seconds - two.seconds) == pytest.approx(66.8, rel=0.1)
    allreduce = three.parts["allreduce"] - two.parts["allreduce"]
    assert 1e3 * allreduce == pytest.approx(5.78, rel=0.1)
    # QKV, output and both of the feed-forward network, as measured one by one.
    products = three.parts["gemm"] - two.parts["gemm"]
    assert 1e3 * products == pytest.approx(13.72 + 4.54 + 17.46 + 17.49, rel=0.1)


ALONE = Rank(0, 1, torch.device("cpu"), lambda message: None)
every_model = pytest.mark.parametrize(
    "function", (MODELS := tiny.FUNCTIONS | tiny.FAMILIES).values(), ids=MODELS
)


@every_model
@pytest.mark.parametrize("tied", [True, False])
def test_weights_and_cache_are_what_the_engine_allocates(function, tied):
    config = tiny.model_config(
        heads_per_sublayer=4,
        vocab_size=301,
        tie_word_embeddings=tied,
        **{"head_dim": 6, **function},
    )
    options = EngineOptions(emulated_ranks=2, link=Link(gbps=1.0), pack=False)
    model = RankModel.random(config, ALONE, torch.float32, options)
    parameters = sum(p.nbytes for p in model.decoder.parameters())
    if not tied:
        parameters += len(model.shard.head_rows) * config.hidden_size * 4
    assert weight_bytes(model.shard, 4) == parameters
    engine = Engine.random(config, ALONE, torch.float32, options)
    with engine.session([[1, 2, 3]] * 2, 5) as session:
        assert cache_bytes(engine.shard, 4, batch=2, positions=8) == session.cache.nbytes


class Held(TorchDispatchMode):
    """Counts what tensors of a real run hold."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        if not func.is_view and not func._schema.is_mutable:
            outputs = results if isinstance(results, tuple | list) else [results]
            self.recorder.made([x for x in outputs if isinstance(x, torch.Tensor)])
        return results


class Copying:
    """Sums into a message of its own, as process groups do, and sends it nowhere."""

    def __init__(self, inner) -> None:
        pass

    def begin(self, branches):
        total = torch.empty_like(branches[:1])
        sum_branches(branches, total)
        return Ready(total)

    def gather(self, x):
        return x.unsqueeze(0)


@pytest.mark.parametrize("wiring", ["standard", "ladder", "kraken", "shared", "lagged-layer"])
def test_buffers_are_what_the_engine_holds(wiring, monkeypatch):
    def as_on_devices(q, k, v, scaling):
        return causal_attention(q, k, v, scaling=scaling)

    monkeypatch.setattr(cached_attention, "attend_in_blocks", as_on_devices)
    config = tiny.model_config(
        wiring=wiring, hidden_size=64, heads_per_sublayer=4, num_hidden_layers=3,
        max_position_embeddings=512,
    )  # fmt: skip
    options = EngineOptions(emulated_ranks=2, link=Link(gbps=1e6), pack=False)
    engine = Engine.random(config, ALONE, torch.float32, options)
    engine = engine.with_connections(watched(engine.connections, Copying))
    held = Recorder()
    with engine.session([[1] * 400], 1) as session, torch.no_grad(), Held(held):
        session.prefill()
    traced = trace(engine.shard, Pass(1, 400), torch.float32)
    assert traced.peak_bytes == pytest.approx(held.peak_bytes, rel=0.02)


def test_what_fits_is_as_much_as_fits():
    config = model_config("1.3B").replace(position="rope", max_position_embeddings=10**6)
    shard = split(config, 4)[0]
    memory = memory_of(shard, 2, batch=2, positions=1024, buffers=10_000_000)
    usable = 4 * 2**30
    found = room(shard, memory, usable, 2, batch=2, tokens=1000)
    for context, fits in ((found.context, True), (found.context + 128, False)):
        buffers = 10_000_000 * context / 1000
        total = memory_of(shard, 2, batch=2, positions=context, buffers=round(buffers)).total
        assert (total <= usable) == fits
    for batch, fits in ((found.batch, True), (found.batch + 1, False)):
        total = memory_of(shard, 2, batch=batch, positions=1024, buffers=5_000_000 * batch).total
        assert (total <= usable) == fits
    assert room(shard, memory, memory.weights - 1, 2, batch=2, tokens=1000) == (0, 0)
    short = split(model_config("1.3B"), 4)[0]
    assert room(short, memory, usable, 2, batch=1, tokens=1000).context == 2048
    assert math.isclose(memory.total, memory.weights + memory.cache + 10_000_000)
