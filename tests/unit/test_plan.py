"""``krakenlm plan``: the table, the choice, pictures, JSON, the paper's grid, what is refused."""

import dataclasses
import json
import math
from pathlib import Path

import pytest

import tiny
from krakenlm.bench.models import Contender, contenders, parse_wirings
from krakenlm.bench.results import PART_NAMES, LatencyReport
from krakenlm.config import ModelConfig, model_config
from krakenlm.plan import paper_grid
from krakenlm.plan.candidates import Wish, candidates, is_standard, read_shape, with_kv_heads
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.link import LinkProfile
from krakenlm.plan.planner import Setup, plan
from krakenlm.plan.profile_files import write_machine
from krakenlm.plan.report import choose, plan_all
from krakenlm.plan.sweeps import memory_curves, over_degrees

SHAPE = tiny.model_config(
    wiring="standard", num_sublayers=1, hidden_size=512, heads_per_sublayer=8, num_hidden_layers=4,
    max_position_embeddings=512,
)  # fmt: skip
CPU, SLOW = DeviceProfile.named("cpu-core"), LinkProfile.named("1gbe")
ALL = (
    "standard",
    "parallel",
    "ladder",
    "kraken",
    "shared",
    "shared/2:1-3",
    "lagged",
    "lagged-layer",
)


def setup(**changes) -> Setup:
    return Setup(**{"device": CPU, "link": SLOW, "dtype": "bfloat16", **changes})


def wish(*wirings: str, krakens=("keep-width",), **changes) -> Wish:
    return Wish(wirings=tuple(parse_wirings(wirings)), krakens=krakens, **changes)


def planned(config, devices=2, input_len=64, **changes):
    return plan(Contender(config=config, label="model"), devices, input_len, setup(**changes))


def test_a_pass_is_the_sum_of_its_parts_and_no_shorter_than_its_compute():
    for model in candidates(SHAPE, wish(*ALL), 2).models:
        found = plan(model, 2, 128, setup(output_len=4))
        for which in (found.prefill, found.decode):
            assert sum(which.parts.values()) == pytest.approx(which.seconds)
            assert which.parts.keys() == PART_NAMES.keys()
            assert which.compute <= which.seconds <= which.compute + which.communication + 1e-12
            assert which.seconds == pytest.approx(which.compute + which.exposed)
        assert found.latency(4) == pytest.approx(found.prefill.seconds + 3 * found.decode.seconds)


def test_hidden_sums_cost_nothing_on_a_link_that_is_fast_enough():
    standard, lagged = SHAPE, SHAPE.replace(wiring="lagged")
    first, second = (planned(config, input_len=256) for config in (standard, lagged))
    assert first.prefill.sums == 8 and second.prefill.sums == 4
    assert second.prefill.exposed < 0.3 * first.prefill.exposed
    assert first.prefill.compute == pytest.approx(second.prefill.compute, rel=0.05)


def test_the_slowest_of_uneven_ranks_decides():
    even, uneven = (
        planned(SHAPE.replace(heads_per_sublayer=n, kv_heads_per_sublayer=n, head_dim=64))
        for n in (8, 9)
    )
    assert len(even.prefill.timelines) == 1
    four, five = uneven.prefill.timelines
    assert four.seconds == pytest.approx(five.seconds) and five.exposed < four.exposed
    assert uneven.prefill.seconds > even.prefill.seconds
    assert uneven.prefill.compute > even.prefill.compute


def test_ranks_that_share_sub_layers_sum_on_the_spot():
    kraken = candidates(SHAPE, wish("kraken"), 2).models[0].config
    alone, shared = planned(kraken, 2), planned(kraken, 4, tensor_parallel=2)
    # Two sums a layer more, between the two of a group.
    assert shared.prefill.sums == alone.prefill.sums + 2 * SHAPE.num_hidden_layers
    assert shared.prefill.exposed > alone.prefill.exposed
    assert shared.memory.weights < alone.memory.weights


def test_uneven_groups_are_played_rank_by_rank():
    kraken = candidates(SHAPE, wish("kraken", sublayers=4), 4).models[0].config
    found = planned(kraken, 4, tensor_parallel=2, placement=(3, 1))
    assert len(found.prefill.timelines) == 4
    fast, slow = planned(kraken, 4, tensor_parallel=2), planned(kraken, 2, placement=(3, 1))
    assert fast.prefill.seconds < found.prefill.seconds
    assert found.prefill.compute < slow.prefill.compute


def test_the_runs_of_the_latency_page_over_1_gbit_are_met_within_a_tenth():
    # The constants of cpu-core were fitted to the runs on one host, without a link.
    path = Path(__file__).parents[2] / "docs/results/latency/veth-1gbit/run-1.json"
    report = LatencyReport.load(path)
    wirings = "standard,parallel,ladder,kraken,shared,shared/2,shared/4,lagged,lagged-layer"
    models = contenders(
        report.size, wirings.split(","), ["published", "keep-width"], sublayers=report.devices
    )
    measured = {result.label: result for result in report.results}
    assert measured.keys() == {model.label for model in models}
    for model in models:
        found = plan(model, report.devices, report.input_len, setup(output_len=report.output_len))
        result = measured[model.label]
        assert 1e3 * found.prefill.seconds == pytest.approx(result.ttft_ms.median, rel=0.1)
        assert 1e3 * found.decode.seconds == pytest.approx(result.tpot_ms.median, rel=0.1)


def test_chunks_hide_the_sums_of_the_standard_model():
    contender = Contender(config=SHAPE, label="standard")
    whole, halves = (
        plan(dataclasses.replace(contender, prefill_chunks=n), 2, 256, setup()) for n in (1, 2)
    )
    assert halves.prefill.sums == 2 * whole.prefill.sums
    assert halves.prefill.exposed < 0.6 * whole.prefill.exposed


def test_prompts_are_launched_one_by_one_unless_they_are_captured():
    gpu = {"device": DeviceProfile.named("h100"), "link": LinkProfile.named("nvswitch-h100")}
    eager, captured = (
        planned(SHAPE, dtype="float16", graph_prefill=graph, **gpu) for graph in (False, True)
    )
    assert eager.prefill.seconds > 1.5 * captured.prefill.seconds


def test_events_are_those_that_pictures_are_drawn_of():
    events = planned(SHAPE, input_len=128).prefill.events()
    assert {e.name for e in events if e.lane == "communication"} == {"AllReduce"}
    names = [e.name for e in events if e.lane == "compute" and e.name != "wait"]
    assert names[:4] == ["attention 1", "feed-forward 1", "attention 2", "feed-forward 2"]
    assert all(e.start <= e.end for e in events)


@pytest.mark.parametrize(
    ("changes", "fits"), [({"wiring": "standard"}, True), ({"wiring": "lagged"}, False)]
)
def test_which_shapes_may_have_any_wiring(changes, fits):
    assert is_standard(SHAPE.replace(**changes)) == fits


def test_a_shape_has_a_model_for_each_wiring_and_kind_of_kraken():
    krakens = ("published", "keep-width", "gqa", "mqa")
    models, left_out, _ = candidates(SHAPE, wish(*ALL, krakens=krakens), 2)
    assert [m.config.wiring for m in models] == [
        "standard", "parallel", "ladder", *["kraken"] * 4, "shared", "shared", "lagged",
        "lagged-layer",
    ]  # fmt: skip
    assert left_out == [] and len({m.label for m in models}) == len(models)
    gqa, mqa = (m.config for m in models if m.variant in ("gqa", "mqa"))
    assert (gqa.kv_heads_per_sublayer, mqa.kv_heads_per_sublayer) == (2, 1)


def test_a_saved_kraken_is_planned_as_it_is(tmp_path):
    config = tiny.model_config(num_hidden_layers=2)
    (tmp_path / "config.json").write_text(json.dumps(config.to_hf_dict()))
    for text in (str(tmp_path), str(tmp_path / "config.json")):
        assert read_shape(text) == config
    models, left_out, missing = candidates(config, wish("kraken", "standard"), 2)
    assert [m.label for m in models] == ["kraken (as it is)"]
    assert left_out == missing and "differ in their weights" in left_out[0]


def test_kinds_of_kraken_that_do_not_exist_are_left_out_of_those_that_do(capfd):
    command = ("plan", "1.3B", "--input-len", 8, "--output-len", 1, "--devices", 4)
    said = tiny.call(capfd, *command, "--tensor-parallel", 2, "--wirings", "standard,kraken")
    assert said.code == 0, said.err
    assert "kraken (GQA" in said.out and "kraken (MQA" not in said.out
    assert "left out: kraken (MQA" in said.err and "has 1 key and value heads" in said.err
    alone = tiny.call(capfd, *command, "--tensor-parallel", 2, "--kraken", "mqa")
    assert alone.code == 2 and "has 1 key and value heads" in alone.err


def test_the_fastest_that_fits_is_chosen_and_one_device_where_none_is_faster():
    def chosen(input_len, link, **changes):
        at = setup(link=LinkProfile.named(link), **changes)
        report = plan_all(SHAPE, wish(*ALL), [2], [input_len], at, title="", strict=True)
        return choose(report, input_len)

    fast = chosen(256, "10gbe")
    assert fast.verdict == "chosen" and fast.devices == 2 and "less time" in fast.why
    slow = chosen(8, "10000,0.001")
    assert slow.verdict == "one device" and "one device is faster" in slow.why
    values = dataclasses.asdict(CPU)
    small = dataclasses.replace(
        CPU, memory_gib=dataclasses.replace(CPU.memory_gib, value=values["reserved_gib"]["value"])
    )
    none = chosen(64, "10gbe", device=small)
    assert none.verdict == "nothing fits" and none.model == ""


def test_what_cannot_be_told_apart_is_standard():
    report = plan_all(
        SHAPE, wish("standard", "lagged"), [2], [64], setup(link=LinkProfile.named("0,10000")),
        title="", strict=True,
    )  # fmt: skip
    choice = choose(report, 64)
    assert (choice.model, choice.devices) == ("standard", 2)
    assert "no other wiring gains 4%" in choice.why


def test_memory_over_contexts_is_that_of_the_models():
    curves = memory_curves(SHAPE, [2], setup())
    assert [(c.label, c.devices) for c in curves] == [
        ("standard", 1), ("standard", 2), ("kraken (MHA)", 2), ("kraken (GQA)", 2),
        ("kraken (MQA)", 2),
    ]  # fmt: skip
    for curve in curves:
        assert [b / a for a, b in zip(curve.cache, curve.cache[1:], strict=False)] == [2.0] * 7
    standard, mha, gqa, mqa = (c.cache[0] for c in curves[1:])
    assert standard == 2 * 4 * (512 // 2) * 1024 * 2
    assert mha > standard and gqa == 2 * mqa
    assert with_kv_heads(SHAPE, 2, "mqa").kv_heads_per_sublayer == 1


def test_degrees_that_a_wiring_does_not_have_are_gaps():
    degrees, lines = over_degrees(SHAPE, wish("standard", "kraken"), [2, 3], 32, setup())
    assert degrees == [1, 2, 3]
    assert all(value is not None for value in lines["standard"])
    assert lines["kraken (keep-width)"][0] is lines["kraken (keep-width)"][2] is None


def test_the_command_prints_a_table_and_writes_everything(tmp_path, capfd):
    files = [tmp_path / name for name in ("plot.png", "timeline.png", "memory.png", "plan.json")]
    said = tiny.call(
        capfd, "plan", "124M", "--device", "cpu-core", "--devices", 2, "--input-len", "16,64",
        "--output-len", 4, "--wirings", "standard,kraken,shared/2", "--kraken", "keep-width,mqa",
        "--parts", "--plot", files[0], "--timeline", files[1], "--memory", files[2], "--json",
        files[3],
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "kraken (keep-width 768)" in said.out and "choice for 64 tokens" in said.out
    assert "planned, not measured" in said.out and "overlapped GEMM" in said.out
    assert all(path.stat().st_size > 1000 for path in files)
    values = json.loads(files[3].read_text())
    assert values["basis"] == "planned, not measured"
    assert [r["devices"] for r in values["results"]] == [1, 2, 2, 2, 2] * 2
    entry = values["results"][3]
    assert entry["ttft_speedup"] > 1 and entry["fits"] is True
    assert 0.0 <= entry["prefill"]["share_from_tables"] <= 1.0
    assert entry["prefill"]["parts_ms"].keys() == PART_NAMES.keys()
    assert values["profiles"]["device"]["kernel_us"]["source"]
    assert ModelConfig.from_dict(entry["config"]).hidden_size == 768
    assert {c["input_len"] for c in values["choices"]} == {16, 64}


def test_profiles_of_ones_own_are_read(tmp_path, capfd):
    slow = dataclasses.replace(CPU.kernel_us, value=1000.0)
    profile = tmp_path / "mine.toml"
    write_machine(profile, dataclasses.replace(CPU, title="my core", kernel_us=slow))
    command = ("plan", "124M", "--devices", 2, "--input-len", 16, "--wirings", "standard")
    said = tiny.call(capfd, *command, "--profile", profile)
    assert said.code == 0, said.err
    assert "my core" in said.out
    again = tiny.call(capfd, *command, "--profile", profile, "--device", "h100")
    assert again.code == 2 and "--profile gives a device already" in again.err


REFUSED = [
    ("plan", "which model"),
    ("plan 124M --devices -2", "--devices -2"),
    ("plan 124M --devices 5", "num_sublayers=5 does not divide 12"),
    (
        "plan 1.3B --devices 3",
        "shared on 3 devices: num_sublayers=3 does not divide 16 query heads",
    ),
    ("plan 1.3B --devices 3 --wirings kraken --kraken published", "does not divide 16 query heads"),
    ("plan 124M --devices 16 --wirings standard", "12 key and value heads to share out: use at"),
    ("plan kraken-125M-2way --devices 4", "2 sub-layers to share out: use at most 2"),
    ("plan 124M --input-len 0", "--input-len 0"),
    ("plan 124M --input-len 2000", "the model's context holds 1024"),
    ("plan 124M --output-len 0", "--output-len 0: needs 1 or more"),
    ("plan 124M --batch-size -1", "--batch-size -1: needs 1 or more"),
    ("plan 124M --sublayers 0", "--sublayers 0: needs 1 or more"),
    ("plan 124M --tensor-parallel 0", "--tensor-parallel 0: needs 1 or more"),
    ("plan 124M --prefill-chunks 0", "--prefill-chunks 0"),
    ("plan 124M --link 3gbe", "--link 3gbe: choose one of 100gbe"),
    ("plan 124M --link 1,0", "gbps=0: needs more than 0"),
    ("plan 124M --device a1000", "--device a1000: choose one of a100-40gb"),
    ("plan 124M --dtype int8", "--dtype int8: choose one of"),
    ("plan 124M --device cpu-core --dtype float16", "--dtype float16: cpu-core has"),
    ("plan 124M --allreduce tree", "--allreduce tree: choose one of nccl"),
    ("plan 124M --wirings mamba", "'mamba' is not one of"),
    ("plan 124M --kraken wide", "'wide' is not one of"),
    ("plan 124M --kraken mqa,mqa", "give each name once"),
    ("plan 99Z", "unknown size '99Z'"),
    ("plan 124M --plot x.pdf", "pictures are PNG"),
    ("plan 124M --profile nowhere.toml", "there is no such file"),
    ("plan --paper-grid --device h100", "leave --device out"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED, ids=[c for c, _ in REFUSED])
def test_nonsense_is_refused_in_one_line(command, message, capfd):
    said = tiny.call(capfd, *command.split())
    assert said.code == 2
    assert len(said.complaints) == 1 and message in said.complaints[0]
    assert said.out == ""


@pytest.fixture(scope="module")
def small_grid():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paper_grid, "SIZES", ("1.3B",))
        yield paper_grid.plan_paper_grid()


def test_the_grid_has_a_mean_for_each_wiring(small_grid):
    values = small_grid.to_json()
    assert values["geomean_speedup"].keys() == set(paper_grid.WIRINGS)
    assert values["geomean_speedup"]["standard"] == 1.0
    ratios = [cell["models"][3]["speedup"] for cell in values["cells"]]
    assert len(ratios) == 4
    assert values["geomean_speedup"]["kraken"] == pytest.approx(math.prod(ratios) ** 0.25)
    assert values["paper"]["geomean_speedup"] == 1.356


def test_the_grid_s_operators_add_up_to_what_is_saved(small_grid):
    parts = small_grid.parts()
    assert sum(parts["standard"].values()) == pytest.approx(1.0)
    shares = [cell[3].prefill.seconds / cell[0].prefill.seconds for cell in small_grid.cells()]
    assert sum(parts["kraken"].values()) == pytest.approx(sum(shares) / 4)


def test_without_communication_kraken_gains_nothing(small_grid):
    by_kernel = small_grid.by_kernel
    assert by_kernel.keys() == {"nccl", "one-shot", paper_grid.WITHOUT}
    assert by_kernel[paper_grid.WITHOUT]["kraken"] < 1.1 < by_kernel["nccl"]["kraken"]


def test_ladder_is_planned_for_the_machine_of_its_authors(small_grid):
    prefill, decode = small_grid.ladder
    assert (prefill.reported_percent, decode.reported_percent) == (5.8, 24.0)
    assert decode.planned_percent == pytest.approx(24.0, abs=6.0)


def test_the_grid_is_a_command(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(paper_grid, "SIZES", ("1.3B",))
    target = tmp_path / "grid.json"
    said = tiny.call(capfd, "plan", "--paper-grid", "--allreduce", "nccl", "--json", target)
    assert said.code == 0, said.err
    assert "paper 1.356x (26% less time)" in said.out
    values = json.loads(target.read_text())
    assert values["allreduce"] == "nccl" and values["geomean_speedup"]["kraken"] > 1


@pytest.mark.slow
def test_the_whole_grid_is_near_the_papers_mean():
    means = paper_grid.plan_paper_grid().geomeans()
    assert means["kraken"] == pytest.approx(1.356, rel=0.1)
    assert model_config("175B").num_hidden_layers == 96
