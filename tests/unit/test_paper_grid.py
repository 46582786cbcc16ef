"""``krakenlm bench paper-grid``: its cases, what is measured again and what is not, its report."""

import json
import math
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

import tiny
from krakenlm.bench.results import LatencyReport, ModelLatency
from krakenlm.cli.main import main
from krakenlm.config import count_parameters
from krakenlm.emulation import PICTURE, SUMMARY, figures, measuring
from krakenlm.emulation import machine as machines
from krakenlm.emulation.cases import WIRINGS, Case, Grid, read_scale
from krakenlm.emulation.footprint import Room
from krakenlm.emulation.machine import Machine, machine_at
from krakenlm.emulation.measuring import IN_TURN, Effort, Found
from krakenlm.emulation.report import Reporter
from krakenlm.emulation.run import check_run, run_grid
from krakenlm.emulation.tables import remarks
from krakenlm.environment import Environment
from krakenlm.errors import KrakenError
from krakenlm.plan import paper_grid as planned_grid
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.planner import plan
from krakenlm.spread import Quantiles

pytestmark = pytest.mark.usefixtures("own_signals")

GRID = Grid(sizes=("1.3B",), wirings=("kraken", "parallel"), scale=64)
EFFORT = Effort(iterations=2, warm_up=0)
FAST = ["--scale", "tiny", "--num-iters", "2", "--num-iters-warmup", "0", "--device", "cpu"]


@pytest.fixture(scope="module")
def machine() -> Machine:
    return machine_at("cpu", {}, dtype="float32")


def alike(milliseconds: float) -> Quantiles:
    return Quantiles(median=milliseconds, p10=milliseconds, p90=milliseconds)


class Measurer:
    """Stands for ``measure``: notes what it is asked, and answers at once.

    Kraken takes 100 ms for 128 tokens and 200 for 2,048, parallel 125 and 250, standard 150 and
    300; communication is a fifth of each.
    """

    def __init__(self) -> None:
        self.asked: list[tuple[str, ...]] = []
        self.before = lambda: None

    def __call__(self, contenders, setup, *, title, command, size):
        self.before()
        self.asked.append(tuple(c.label.split()[0] for c in contenders))
        assert setup.emulate_peers and setup.output_len == 1
        times = {"standard": 150.0, "kraken": 100.0, "parallel": 125.0}
        longer = 2.0 if setup.input_len > 2 else 1.0
        results = [self.result(c, longer * times[c.config.wiring]) for c in contenders]
        if results[0].wiring == "standard":
            first = results[0].ttft_ms.median
            results = [replace(r, speedup=first / r.ttft_ms.median) for r in results]
        report = LatencyReport(
            title=title, devices=setup.devices, input_len=setup.input_len, dtype=setup.dtype,
            iterations=setup.iterations, environment=Environment.here(cores=1),
            results=tuple(results), link=f"emulated: {setup.link}", transport="emulated-peers",
            emulation=f"emulated: one rank of {setup.devices} alone", size=size,
            graph_prefill=setup.graph_prefill,
        )  # fmt: skip
        return measuring_result(report)

    def result(self, contender, milliseconds: float) -> ModelLatency:
        return ModelLatency(
            wiring=contender.config.wiring, label=contender.label,
            parameters=count_parameters(contender.config), ttft_ms=alike(milliseconds),
            no_comm_ttft_ms=alike(0.8 * milliseconds), allreduces=2, message_bytes=100,
        )  # fmt: skip


def measuring_result(report: LatencyReport):
    from krakenlm.bench.latency import Measured

    return Measured(report, {})


@pytest.fixture
def measurer(monkeypatch) -> Measurer:
    measurer = Measurer()
    monkeypatch.setattr(measuring, "measure", measurer)
    return measurer


def summary(folder: Path) -> dict:
    return json.loads((folder / SUMMARY).read_text(encoding="utf-8"))


def test_the_default_grid_is_the_papers_and_kraken_comes_first():
    cases = Grid().cases()
    assert len({case.cell for case in cases}) == 20
    assert [case.wiring for case in cases[:40]] == ["kraken"] * 20 + ["parallel"] * 20
    assert [case.size for case in cases[:20:4]] == list(planned_grid.SIZES)
    assert cases[0] == ("1.3B", 4, 128, "kraken") and str(cases[0]) == (
        "1.3B 4-way, 128 tokens, kraken"
    )
    assert len({case.file_name for case in cases}) == len(cases)
    assert set(WIRINGS) | {"standard"} == set(planned_grid.WIRINGS)


def test_unscaled_models_are_those_of_the_planned_grid():
    grid = Grid()
    for case in (Case("6.7B", 8, 128, "kraken"), Case("6.7B", 4, 128, "lagged")):
        mine = [(m.label, m.config) for m in grid.models(case)]
        models = planned_grid.grid_models(mine[0][1], case.devices)
        theirs = {m.config.wiring: (m.label, m.config) for m in models}
        assert mine == [theirs["standard"], theirs[case.wiring]]
        assert grid.tokens(case.input_len) == 128


@pytest.mark.parametrize("scale", [2, 16, 64, 1024])
def test_scaled_sizes_can_still_be_shared_by_eight(scale, machine):
    grid = Grid(scale=scale)
    check_run(grid, machine, EFFORT)
    widths = [
        grid.models(Case(size, 8, 128, "kraken"))[0].config.hidden_size for size in grid.sizes
    ]
    assert widths == sorted(widths) and widths[0] >= 64
    assert 1 <= grid.tokens(128) <= 64


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sizes": ("1.3B", "1.3B")}, "--sizes 1.3B,1.3B: give each once"),
        ({"sizes": ("2B",)}, "unknown size '2B'"),
        (
            {"devices": (3,), "wirings": ("shared",)},
            "1.3B 3-way, 128 tokens, shared: num_sublayers=3 does not divide 8 query heads",
        ),
        ({"devices": (16,)}, "16"),
        ({"input_lens": (4096,)}, "--input-len 4096: the context of 1.3B holds 2048"),
        ({"wirings": ("standard",)}, "--wirings standard: standard is measured beside each"),
        ({"wirings": ("kraken", "kraken")}, "give each name once"),
        ({"wirings": ("mamba",)}, "'mamba' is not one of"),
        ({"wirings": ("lagged/2",)}, "1.3B 4-way, 128 tokens, lagged/2: message_parts"),
    ],
)
def test_cases_that_do_not_exist_are_refused(changes, said, machine):
    grid = Grid(**{"sizes": ("1.3B",), "wirings": ("kraken",), "scale": 64, **changes})
    with pytest.raises(KrakenError, match=said) as refusal:
        check_run(grid, machine, EFFORT)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("text", "scale"), [("full", 1), ("tiny", 64), ("16", 16)])
def test_scales_are_read(text, scale):
    assert read_scale(text) == scale


@pytest.mark.parametrize("text", ["0", "-1", "1.5", "huge", "", "2000", "9" * 9999, "²"])
def test_other_scales_are_refused(text):
    with pytest.raises(KrakenError, match="write full, tiny, or a number from 1 to 1024"):
        read_scale(text)


def test_every_case_is_put_down_and_not_measured_again(tmp_path, machine, measurer):
    known: list[int] = []

    def count() -> None:
        known.append(len(summary(tmp_path)["cells"]))

    run_grid(tmp_path, GRID, machine, EFFORT, on_case=count)
    cases = GRID.cases()
    assert measurer.asked == [("standard", "kraken")] * 4 + [("standard", "parallel")] * 4
    assert known == [1, 2, 3, 4, 4, 4, 4, 4]  # the summary knows a case before anybody hears of it
    for case in cases:
        assert LatencyReport.load(tmp_path / case.file_name).devices == case.devices
    (tmp_path / cases[1].file_name).unlink()
    measurer.asked.clear()
    again: list[None] = []
    run_grid(tmp_path, GRID, machine, EFFORT, on_case=lambda: again.append(None))
    assert measurer.asked == [("standard", "kraken")] and len(again) == len(cases)
    assert (tmp_path / PICTURE).read_bytes().startswith(b"\x89PNG")


def test_the_summary_has_means_and_the_planners_error(tmp_path, machine, measurer):
    report = run_grid(tmp_path, GRID, machine, EFFORT, command=["krakenlm", "bench"])
    found = summary(tmp_path)
    assert (found["kind"], found["emulated"]) == ("paper-grid-emulated", True)
    assert found["how"].startswith("emulated: one rank of") and "emulated" in found["basis"]
    assert found["geomean_speedup"] == pytest.approx({"kraken": 1.5, "parallel": 1.2})
    assert found["geomean_cells"] == {"kraken": 4, "parallel": 4}
    assert found["paper"]["geomean_speedup"] == planned_grid.PAPER_SPEEDUP
    assert (found["scale"], found["cells_of_the_grid"], found["dtype"]) == (64, 4, "float32")
    errors, planned_means = [], []
    for cell in found["cells"]:
        case = Case(cell["size"], cell["devices"], cell["input_len"], "kraken")
        standard, kraken, parallel = cell["models"]
        assert [m["wiring"] for m in cell["models"]] == ["standard", "kraken", "parallel"]
        assert parallel["over_no_comm_percent"] == pytest.approx(25.0)
        again = [
            plan(m, case.devices, GRID.tokens(case.input_len), machine.plan_setup())
            for m in (*GRID.models(case), GRID.models(case._replace(wiring="parallel"))[1])
        ]
        for model, planned in zip(cell["models"], again, strict=True):
            milliseconds = 1000 * planned.prefill.seconds
            assert model["planned"]["ttft_ms"] == pytest.approx(milliseconds)
            error = 100 * (milliseconds / model["ttft_ms"]["median"] - 1)
            assert model["planner_error_percent"] == pytest.approx(error)
            errors.append(abs(error))
        cover = kraken["planned"]["compute_beside_sums_over_sums"]
        parts = again[1].prefill.parts
        beside = parts["attention"] + parts["overlapped_gemm"]
        assert cover == pytest.approx(beside / again[1].prefill.communication) and cover > 0
        assert standard["planned"]["compute_beside_sums_over_sums"] is None
        planned_means.append(again[0].prefill.seconds / again[1].prefill.seconds)
    assert found["planner_error_percent"]["median"] == pytest.approx(statistics.median(errors))
    assert found["planner_error_percent"]["worst"] == pytest.approx(max(errors))
    assert found["planner_error_percent"]["models"] == 12
    hidden = found["over_no_comm_percent_where_compute_can_hide_sums"]
    covers = [
        cell["models"][1]["planned"]["compute_beside_sums_over_sums"] for cell in found["cells"]
    ]
    assert hidden["models"] == sum(cover >= 1 for cover in covers) == 0  # tiny beside 1 Gbit/s
    mean = math.prod(planned_means) ** 0.25
    assert found["geomean_speedup_planned"]["kraken"] == pytest.approx(mean)
    said = " ".join(remarks(report))
    assert "geometric mean of 4 of 4 cells: emulated 1.500x" in said and "paper" not in said
    full = replace(report, grid=GRID._replace(scale=1))
    assert "emulated 1.500x, paper 1.356x on its own machine" in " ".join(remarks(full))
    assert f"worst {max(errors):.1f}%, 12 models" in said


def test_a_chart_shows_what_was_measured_and_what_was_planned(tmp_path, machine, measurer):
    report = run_grid(tmp_path, GRID, machine, EFFORT)
    axes = Figure().subplots()
    figures._draw(axes, 8, report)
    assert [bar.get_height() for bar in axes.patches] == pytest.approx([1.5, 1.5, 1.2, 1.2])
    dots = [place for line in axes.lines if line.get_marker() == "o" for place in line.get_ydata()]
    pairs = [pair for case, pair in report.pairs.items() if case.devices == 8]
    assert sorted(dots) == pytest.approx(sorted(pair.planned_speedup for pair in pairs))
    assert [text.get_text() for text in axes.get_xticklabels()] == ["1.3B\n2", "1.3B\n32"]


def test_cases_measured_otherwise_are_refused(tmp_path, machine, measurer):
    grid = Grid(sizes=("1.3B",), devices=(4,), input_lens=(128,), wirings=("kraken",), scale=64)
    run_grid(tmp_path, grid, machine, EFFORT)
    measurer.asked.clear()
    other_link = machine_at("cpu", {}, dtype="float32", link="pcie4")
    for other_grid, other_machine, effort, said in (
        (grid, other_link, EFFORT, "another link, emulated: 1gbe, fastest, where emulated: pcie4"),
        (grid, replace(machine, dtype="bfloat16"), EFFORT, "another dtype, float32, where bfl"),
        (grid, machine, Effort(iterations=3), "another iterations, 2, where 3"),
        (grid._replace(scale=32), machine, EFFORT, "another input len, 2, where 4"),
    ):
        with pytest.raises(KrakenError, match=said + ".*give another folder") as refusal:
            run_grid(tmp_path, other_grid, other_machine, effort)
        assert "\n" not in str(refusal.value)
    assert measurer.asked == []
    (tmp_path / grid.cases()[0].file_name).write_text("{")
    with pytest.raises(KrakenError, match="not valid JSON"):
        run_grid(tmp_path, grid, machine, EFFORT)


def test_a_time_limit_puts_down_what_there_is(tmp_path, machine, measurer, monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now[0])

    def pass_time() -> None:
        now[0] += 10.0

    measurer.before = pass_time
    limited = replace(EFFORT, seconds=25.0)
    report = run_grid(tmp_path, GRID, machine, limited)
    assert len(measurer.asked) == 2  # a third would end after 30 seconds
    assert [str(c) for c in report.found.left] == [str(c) for c in GRID.cases()[2:]]
    assert summary(tmp_path)["no_time_for"][0] == "1.3B 8-way, 128 tokens, kraken"
    assert "no time was left for 6 cases" in " ".join(remarks(report))
    run_grid(tmp_path, GRID, machine, limited)
    run_grid(tmp_path, GRID, machine, EFFORT)
    assert len(measurer.asked) == len(GRID.cases())
    assert summary(tmp_path)["no_time_for"] == []


def test_the_first_case_of_a_size_is_expected_to_take_as_long_as_any_before_it(
    tmp_path, machine, measurer, monkeypatch
):
    now = [1000.0]
    monkeypatch.setattr(measuring.time, "monotonic", lambda: now[0])

    def pass_time() -> None:
        now[0] += 10.0

    measurer.before = pass_time
    grid = GRID._replace(sizes=("1.3B", "6.7B"), devices=(4,), input_lens=(128,))
    report = run_grid(tmp_path, grid, machine, replace(EFFORT, seconds=15.0))
    assert [case.size for case in report.pairs] == ["1.3B"]
    assert report.found.left[0].size == "6.7B"


def test_an_interrupt_leaves_the_summary_and_the_picture(tmp_path, machine, measurer):
    def interrupt() -> None:
        if len(measurer.asked) == 2:
            raise KeyboardInterrupt

    measurer.before = interrupt
    with pytest.raises(KeyboardInterrupt):
        run_grid(tmp_path, GRID, machine, EFFORT)
    assert len(summary(tmp_path)["cells"]) == 2
    assert (tmp_path / PICTURE).is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [SUMMARY, PICTURE, *(case.file_name for case in GRID.cases()[:2])]
    )


def test_models_that_do_not_fit_together_take_turns_and_larger_ones_are_left_out(
    tmp_path, machine, measurer, monkeypatch
):
    grid = GRID._replace(devices=(4,), wirings=("kraken",), input_lens=(128,))
    (case,) = grid.cases()
    setup = measuring.setup_of(grid, case, machine, EFFORT)
    models = grid.models(case)
    both, *each = (
        measuring.needs(group, setup, torch.float32).nbytes
        for group in (models, models[:1], models[1:])
    )
    assert max(each) < both
    monkeypatch.setattr(measuring, "room_on", lambda device: Room("a GPU", max(each)))
    report = run_grid(tmp_path, grid, machine, EFFORT)
    assert measurer.asked == [("standard",), ("kraken",)]
    stored = LatencyReport.load(tmp_path / case.file_name)
    assert IN_TURN in stored.title
    assert [r.speedup for r in stored.results] == pytest.approx([1.0, 1.5])
    assert report.pairs[case].speedup == pytest.approx(1.5)
    (tmp_path / case.file_name).unlink()
    monkeypatch.setattr(measuring, "room_on", lambda device: Room("a GPU", min(each) - 1))
    report = run_grid(tmp_path, grid, machine, EFFORT)
    assert len(measurer.asked) == 2 and not report.pairs
    (why,) = summary(tmp_path)["skipped"].values()
    assert "one rank of 4 needs about" in why and "a GPU has" in why
    assert any(line.startswith(f"left out: {case}: ") for line in remarks(report))


def test_memory_that_runs_out_all_the_same_leaves_out_one_case(tmp_path, machine, measurer):
    def run_out() -> None:
        if len(measurer.asked) == 0:
            measurer.asked.append(())
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\nmore")

    measurer.before = run_out
    report = run_grid(tmp_path, GRID, machine, EFFORT)
    assert len(report.found.reports) == 7
    (why,) = report.found.skipped.values()
    assert why.startswith("ran out of memory, though one rank of 4 needs") and "\n" not in why


def test_a_device_without_a_profile_is_measured_and_not_planned(
    tmp_path, machine, measurer, monkeypatch
):
    unknown = replace(machine, profile=None)
    report = run_grid(tmp_path, GRID, unknown, EFFORT)
    found = summary(tmp_path)
    assert found["planner_error_percent"] == {"median": None, "worst": None, "models": 0}
    assert found["cells"][0]["models"][0]["planned"] is None
    assert found["geomean_speedup"]["kraken"] == pytest.approx(1.5)
    assert "nothing was planned beside" in " ".join(remarks(report))


def test_what_communication_adds_counts_where_compute_can_hide_it(tmp_path, measurer):
    fast = machine_at("cpu", {}, dtype="float32", link="0,100000")
    report = run_grid(tmp_path, GRID, fast, EFFORT)
    hidden = summary(tmp_path)["over_no_comm_percent_where_compute_can_hide_sums"]
    assert hidden == {"median": pytest.approx(25.0), "worst": pytest.approx(25.0), "models": 4}
    assert "communication adds 25.0% to the time without it, at most 25.0%" in " ".join(
        remarks(report)
    )


@pytest.mark.parametrize(
    ("gpu", "profile", "link"),
    [
        ("NVIDIA H100 80GB HBM3", "h100", "nvswitch-h100"),
        ("NVIDIA H200", "h200", "nvswitch-h100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb", "nvswitch-a100"),
        ("NVIDIA H100 PCIe", None, "nvswitch-a100"),
    ],
)
def test_a_gpu_is_known_by_its_name(gpu, profile, link, machine, monkeypatch):
    monkeypatch.setattr(machines, "device_of", lambda name: torch.device("cuda", 0))
    monkeypatch.setattr(machines, "gpu_name", lambda device: gpu)
    found = machine_at("cuda", {})
    assert (found.profile and found.profile.name) == profile
    assert (found.link.profile.name, found.link.kernel) == (link, "fastest")
    assert found.dtype == "float16" and found.captures and gpu in found.name
    setup = found.plan_setup()
    assert (setup is None) == (profile is None)
    if setup is not None:
        assert setup.graph_prefill
        assert setup.device.compute_slowdown_beside_allreduce.value == 1.1
        assert setup.device.allreduce_slowdown_beside_compute.value == 1.0  # it ends on time
    with pytest.raises(
        KrakenError, match="--profile: cpu-core is of a cpu, and this runs on a gpu"
    ):
        machine_at("cuda", {"device": machine.profile})
    measured = replace(DeviceProfile.named("h100"), usual_link="pcie4")
    peaks = {"bfloat16": measured.peak_tflop_per_second["bfloat16"]}
    measured = replace(measured, peak_tflop_per_second=peaks)
    calibrated = machine_at("cuda", {"device": measured})
    assert (calibrated.link.profile.name, calibrated.dtype) == (link, "bfloat16")


def test_held_sums_take_nothing_of_a_cpu(machine):
    slower = replace(machine.profile.compute_slowdown_beside_allreduce, value=1.3)
    device = replace(machine.profile, compute_slowdown_beside_allreduce=slower)
    setup = machine_at("cpu", {"device": device}, dtype="float32").plan_setup()
    assert setup.device.compute_slowdown_beside_allreduce.value == 1.0
    assert setup.device.allreduce_slowdown_beside_compute.value == 1.0


def test_a_profile_of_ones_own_says_what_it_was_measured_with(machine):
    peaks = {"bfloat16": next(iter(machine.profile.peak_tflop_per_second.values()))}
    own = replace(machine.profile, name="mine", peak_tflop_per_second=peaks)
    found = machine_at("cpu", {"device": own})
    assert (found.profile.name, found.dtype) == ("mine", "bfloat16")
    with pytest.raises(KrakenError, match="--dtype float32: mine has bfloat16"):
        machine_at("cpu", {"device": own}, dtype="float32")


@pytest.mark.dist
def test_a_tiny_grid_from_the_command_line(tmp_path, capfd):
    folder = tmp_path / "grid"
    wanted = ["--sizes", "1.3B", "--devices", "4", "--input-len", "2048", "--wirings", "kraken"]
    said = tiny.call(capfd, "bench", "paper-grid", folder, *FAST, *wanted, "--link", "5000,1")
    found = summary(folder)
    (cell,) = found["cells"]
    standard, kraken = cell["models"]
    # Sums of 5 ms a step and more are most of the time: four of them against two.
    assert kraken["speedup"] == pytest.approx(found["geomean_speedup"]["kraken"])
    assert 1.3 < kraken["speedup"] < 2.5
    assert standard["ttft_ms"]["median"] > 4 * 6 * 5.0
    assert abs(standard["planner_error_percent"]) < 50
    assert "the paper's grid, emulated, scaled down by 64" in " ".join(said.out.split())
    assert (folder / PICTURE).is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--sizes", "9B"], "unknown size '9B'"),
        (["--link", "string"], "--link string: choose one of 100gbe"),
        (["--allreduce", "warp"], "--allreduce warp: choose one of"),
        (["--scale", "0"], "--scale 0: write full, tiny"),
        (["--time-limit", "0"], "--time-limit 0: needs more than 0 seconds"),
        (["--time-limit", "nan"], "--time-limit nan: needs more than 0 seconds"),
        (["--devices", "-1"], "--devices -1: give a number of 1 or more"),
        (["--devices", "1"], "one device has no link: use --devices 2 or more"),
        (["--num-iters", "1"], "--num-iters 1: needs 2 or more"),
        (["--dtype", "int8"], "--dtype int8: choose one of auto"),
        (["--device", "tpu"], "--device tpu: choose one of auto, cpu, cuda"),
        (["--threads", "0"], "--threads 0: needs 1 or more"),
        (["--profile", "nowhere.toml"], "--profile nowhere.toml: there is no such file"),
    ],
)
def test_nonsense_ends_in_one_line_and_leaves_nothing(options, said, tmp_path, capfd):
    folder = tmp_path / "grid"
    with pytest.raises(SystemExit) as end:
        main(["bench", "paper-grid", str(folder), "--scale", "tiny", *options])
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert error.count("\n") == 1 and said in error
    assert not folder.exists()


def test_a_grid_of_which_nothing_is_known_has_no_means(machine):
    report = Reporter(GRID, machine).report(Found())
    assert report.geomeans() == {} and report.errors() == [] and remarks(report) == []
