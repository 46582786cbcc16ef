"""``krakenlm calibrate``: known machines are found again, time is kept, `plan` reads profiles."""

import dataclasses
import itertools
import math
import sys
from collections import defaultdict
from pathlib import Path

import pytest
import torch

import tiny

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "scripts"))

import plan_validate
from krakenlm.bench.models import Contender
from krakenlm.calibrate import run
from krakenlm.calibrate.budget import Budget, Elapsed
from krakenlm.calibrate.measurements import Machine, Measurements
from krakenlm.calibrate.passes import Fitted, Load, ProbeTime, contender, fit, load_of, program_of
from krakenlm.calibrate.points import CPU, Point, Probe
from krakenlm.calibrate.profiles import device_profile, link_profile, over_link
from krakenlm.calibrate.run import Options, calibrate
from krakenlm.calibrate.sums import BesideTimes, SumTime, numbers_of_ranks, slowdowns
from krakenlm.config import model_config
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.model.shard import split
from krakenlm.plan.constants import Constant
from krakenlm.plan.device import DeviceProfile, coordinates
from krakenlm.plan.interpolation import Grid, Nearest, Scattered, correction
from krakenlm.plan.link import LinkProfile, emulated
from krakenlm.plan.measured import CacheMisses
from krakenlm.plan.planner import Setup, plan
from krakenlm.plan.profile_files import read_profiles, write_machine
from krakenlm.plan.program import Begin, Operator, Program, Wait, Work
from krakenlm.plan.schedule import Await, Compute, Contention, Send, play
from krakenlm.plan.timing import Beside, Timer
from krakenlm.ranks.launch import Rank
from krakenlm.transport.links import Link

PROBES = (
    Probe("standard", 64, 1, 8),
    Probe("ladder", 128, 8, 8),
    Probe("standard", 256, 2, 96),
    Probe("lagged", 512, 3, 128),
)
TINY = dataclasses.replace(plan_validate.QUICK_EXTENT, moved=(64, 4096), probes=PROBES[:2])
MACHINE = Machine(
    device_type="cpu", processor="a known core", ranks=2, threads=1, memory_bytes=4 << 30,
    reserved_bytes=1 << 29, multiprocessors=1, megahertz=2600.0, versions="PyTorch 2",
)  # fmt: skip
SLOWDOWN, OPERATOR, ONCE = 1.1, 4e-6, 2e-4


def test_a_whole_grid_is_a_grid_and_anything_else_is_scattered():
    places = list(itertools.product((1.0, 8.0), (2.0, 4.0, 8.0)))
    assert isinstance(correction([(place, 1.0) for place in places]), Grid)
    assert isinstance(correction([(place, 1.0) for place in places[1:]]), Scattered)


def test_a_grid_is_met_at_its_points_and_a_power_law_between_them():
    def ratio(a, b):
        return 3.0 * a**0.5 * b**-0.25

    points = [(place, ratio(*place)) for place in itertools.product((1.0, 64.0), (2.0, 8.0, 512.0))]
    grid = Grid(points)
    for place, value in [*points, ((5.0, 77.0), ratio(5.0, 77.0))]:
        assert grid.correct(place, 10.0) == (pytest.approx(10.0 * value), True)
    # Beyond the edge it is as far off as there, and soon counts as measured no more.
    assert grid.correct((1.0, 1.5), 1.0) == (pytest.approx(ratio(1.0, 2.0)), True)
    assert grid.correct((640.0, 8.0), 1.0) == (pytest.approx(ratio(64.0, 8.0)), False)


def test_of_several_tables_the_nearest_speaks():
    tokens = [(place, 2.0) for place in itertools.product((1.0, 8.0), (64.0, 4096.0))]
    prompts = [(place, 5.0) for place in itertools.product((16.0, 512.0), (64.0, 4096.0))]
    both = Nearest([tokens, prompts, []])
    assert both.correct((2.0, 100.0), 1.0).seconds == pytest.approx(2.0)
    assert both.correct((128.0, 100.0), 1.0).seconds == pytest.approx(5.0)
    assert both.reaches(0, 512.0) and not both.reaches(0, 513.0)
    assert Nearest([]).correct((1.0,), 7.0) == (7.0, False) and not Nearest([])


def test_weights_come_from_memory_where_they_are_more_than_caches_hold():
    misses = CacheMisses(source="me", rows_mib_share=((4.0, 0.1), (16.0, 0.9)))
    shares = [misses.share(mib * 2**20) for mib in (1, 4, 8, 16, math.inf)]
    assert shares == pytest.approx([0.1, 0.1, 0.5, 0.9, 0.9])
    for rows in (((4.0, 0.1), (4.0, 0.2)), ((4.0, 1.1),), ((4.0,),)):
        with pytest.raises(ConfigError, match=r"misses.rows_mib_share\[\d\]"):
            dataclasses.replace(misses, rows_mib_share=rows).check("misses")


def test_a_fit_gives_back_what_was_put_in_and_nothing_negative():
    loads = [Load(s, n) for s, n in ((1e-3, 50), (2e-3, 300), (0.1, 80), (0.03, 60), (0.4, 70))]
    found = fit(loads, [1.07 * s + 3e-6 * n + 1e-4 for s, n in loads])
    assert found == pytest.approx(Fitted(1.07, 3e-6, 1e-4, 0.0), rel=1e-6, abs=1e-9)
    less = fit(loads, [0.9 * s - 1e-6 * n for s, n in loads])
    assert min(less) >= 0.0 and less.operator == 0.0
    assert fit(loads, [2.0 * s for s, _ in loads]).slowdown == pytest.approx(2.0)


def truth(dtype="bfloat16") -> DeviceProfile:
    """A core without tables, whose numbers are no round ones."""
    core = DeviceProfile.named("cpu-core")

    def given(value: float) -> Constant:
        return Constant(value=value, basis="assumed", source="made up for a test")

    return dataclasses.replace(
        core,
        peak_tflop_per_second={dtype: given(0.37)},
        gemm_share_of_peak=given(1.0),
        attention_share_of_peak=given(0.23),
        bandwidth_gb_per_second=given(13.0),
        share_of_bandwidth=given(1.0),
        kernel_us=given(2.5),
        unaligned_gemm_slowdown=given(1.3),
    )


def operator_of(point: Point) -> Operator:
    if point.operator == "gemm":
        return Operator("gemm", "gemm", (1, *point.place), 0, 0)
    if point.operator in ("scores", "values"):
        return Operator("attention", "gemm", point.place, 0, 0)
    if point.operator == "attention":
        heads, queries, keys, width = point.place
        return Operator("attention", "attention", (1, heads, heads, queries, keys, width), 0, 0)
    nbytes = 2 * 2 * math.prod(point.place) if "norm" in point.operator else point.place[0]
    shape = point.place if "norm" in point.operator else ()
    return Operator("other", point.operator, shape, 0, nbytes)


def measurements(extent=CPU, **changes) -> Measurements:
    """What a calibration of that core would find."""
    costs = truth().costs("bfloat16")
    points = tuple((p, costs(operator_of(p)).seconds) for p in extent.points() if not p.resident)
    found = Measurements(machine=MACHINE, dtype="bfloat16", points=points)
    return dataclasses.replace(found, **changes)


def probe_times(probe: Probe) -> ProbeTime:
    times = []
    for decodes in (False, True):
        model = contender(probe, 2, 300)
        program = program_of(model, 2, probe.tokens, "bfloat16", decodes=decodes)
        load = load_of(program, truth(), "bfloat16")
        times.append(SLOWDOWN * load.seconds + OPERATOR * load.operators + ONCE)
    return ProbeTime(*times, *times)


@pytest.fixture(scope="module")
def found() -> DeviceProfile:
    probes = tuple((probe, probe_times(probe)) for probe in PROBES)
    return device_profile(measurements(probes=probes, vocabulary_size=300))


def test_the_constants_of_a_known_core_are_found(found):
    assert found.kernel_us.value == pytest.approx(2.5, rel=0.01)
    assert found.bandwidth_gb_per_second.value == pytest.approx(13.0, rel=0.01)
    assert found.peak_tflop_per_second["bfloat16"].value == pytest.approx(0.37, rel=0.01)
    assert found.attention_share_of_peak.value == pytest.approx(0.23, rel=0.01)
    assert found.unaligned_gemm_slowdown.value == pytest.approx(1.3, rel=0.01)
    assert found.memory_gib.value == 4.0 and found.reserved_gib.value == 0.5
    assert found.misses is None


@pytest.mark.parametrize(
    "operator",
    [
        Operator("gemm", "gemm", (1, 300, 640, 960), 0, 0),
        Operator("gemm", "gemm", (1, 300, 678, 1017), 0, 0),
        Operator("gemm", "gemm", (1, 1, 768, 1152), 0, 0),
        Operator("lm_head", "gemm", (1, 1, 768, 25128), 0, 0),
        Operator("attention", "gemm", (6, 1, 64, 384), 0, 0),
        Operator("attention", "gemm", (6, 1, 384, 64), 0, 0),
        Operator("attention", "attention", (1, 6, 6, 300, 300, 64), 0, 0),
        Operator("attention", "attention", (1, 6, 6, 300, 600, 113), 0, 0),
        Operator("norm", "norm", (300, 768), 0, 4 * 300 * 768),
        Operator("norm", "rms_norm", (300, 768), 0, 4 * 300 * 768),
        *(Operator("other", k, (), 0, 700_000) for k in ("gelu", "softmax", "copy", "move")),
    ],
    ids=str,
)
def test_operators_take_as_long_as_on_the_known_core(found, operator):
    said, true = found.costs("bfloat16")(operator), truth().costs("bfloat16")(operator)
    assert said.from_table
    assert said.seconds == pytest.approx(true.seconds, rel=0.03)


def test_what_passes_take_beside_their_operators_is_found(found):
    for costs in (found.eager, found.captured):
        assert costs.operators_slowdown.value == pytest.approx(SLOWDOWN, rel=0.03)
        assert costs.operator_us.value == pytest.approx(1e6 * OPERATOR, rel=0.2)
        assert costs.pass_us.value == pytest.approx(1e6 * ONCE, rel=0.2)
        assert costs.operators_slowdown.basis == "measured"
        assert "4 small models" in costs.pass_us.source


def test_a_calibrated_machine_is_planned_as_it_really_is(found):
    config = model_config("124M", hidden_size=384, heads_per_sublayer=6, num_hidden_layers=5)
    link = emulated(Link(gbps=1e6), linked())
    setup = Setup(device=found, link=link, dtype="bfloat16", output_len=8)
    planned = plan(Contender(config=config, label=""), 2, 200, setup)
    for which, decodes in ((planned.prefill, False), (planned.decode, True)):
        program = program_of(Contender(config=config, label=""), 2, 200, "bfloat16",
                             decodes=decodes)  # fmt: skip
        load = load_of(program, truth(), "bfloat16")
        seconds = SLOWDOWN * load.seconds + OPERATOR * load.operators + ONCE
        # The plan also has the messages' copies.
        assert which.compute == pytest.approx(seconds, rel=0.06)
        assert which.measured > 0.9
        assert sum(which.parts.values()) == pytest.approx(which.seconds)


def test_weights_in_caches_are_read_faster():
    extent = dataclasses.replace(CPU, resident_widths=(256, 512))
    points = [(p, 1e-5 if p.resident else 4e-5) for p in extent.points() if p.operator == "gemm"]
    others = [pair for pair in measurements().points if pair[0].operator != "gemm"]
    reads = tuple((mib << 20, us * 1e-6) for mib, us in ((1, 10), (8, 10), (32, 40), (64, 40)))
    device = device_profile(measurements(points=(*points, *others), reads=reads))
    assert device.misses.rows_mib_share == ((1, 0), (8, 0), (32, 1), (64, 1))
    token = Operator("gemm", "gemm", (1, 1, 512, 512), 0, 0)
    prompt = Operator("gemm", "gemm", (1, 512, 512, 512), 0, 0)

    def seconds(operator, mib):
        return device.costs("bfloat16", mib * 2**20)(operator).seconds

    assert [seconds(token, mib) for mib in (4, 16, 64)] == pytest.approx([1e-5, 2.5e-5, 4e-5])
    assert seconds(prompt, 4) == pytest.approx(4e-5)  # only of tokens it is known
    assert device.costs("bfloat16")(token).seconds == pytest.approx(4e-5)


def test_caches_that_make_no_difference_are_none():
    device = device_profile(measurements(reads=((1 << 20, 1.0e-5), (64 << 20, 1.01e-5))))
    assert device.misses is None


BEGIN, WAIT, WIRE = (5e-6, 0.1e-9), (3e-6, 0.2e-9), (20e-6, 1e-9)


def sum_time(nbytes: int, ranks=2) -> SumTime:
    begin, wait, wire = (fixed + each * nbytes for fixed, each in (BEGIN, WAIT, WIRE))
    return SumTime(nbytes, ranks, begin + wait + wire, begin, wait)


def linked() -> LinkProfile:
    sums = tuple(sum_time(n) for n in (32, 1 << 10, 1 << 14, 1 << 18, 1 << 22))
    found = link_profile(measurements(TINY, sums=sums, transport="shared-memory"))
    assert found is not None
    return found


def test_the_constants_of_a_known_link_are_found():
    kernel = linked().kernels["shared-memory"]
    assert kernel.begin_us.value == pytest.approx(5.0) and kernel.wait_us.value == pytest.approx(3)
    assert kernel.begin_ns_per_byte.value == pytest.approx(0.1)
    assert kernel.wait_ns_per_byte.value == pytest.approx(0.2)
    assert kernel.step_us.value == pytest.approx(20.0)
    assert kernel.gb_per_second.value == pytest.approx(1.0)
    for nbytes in (32, 5000, 1 << 18):
        cost = linked().sums(None, on_cpu=True)(nbytes, 2)
        assert cost.alone == pytest.approx(sum_time(nbytes).whole, rel=1e-3)
        assert cost.from_table and not cost.held_back


def test_one_device_has_no_link():
    assert link_profile(measurements(TINY)) is None
    assert numbers_of_ranks(1) == []
    assert numbers_of_ranks(2) == [2] and numbers_of_ranks(6) == [2, 4, 6]
    assert numbers_of_ranks(8) == [2, 4, 8]


def test_an_emulated_link_takes_its_time_and_its_carriers_compute():
    link = emulated(Link(gbps=8.0, latency_us=50.0), linked())
    cost = link.sums(None, on_cpu=True)(1_000_000, 2)
    assert (cost.wire, cost.behind) == (pytest.approx(1e-3), pytest.approx(50e-6))
    assert cost.begin == pytest.approx(5e-6 + 1e-4) and cost.wait == pytest.approx(3e-6 + 2e-4)
    assert cost.held_back


def test_a_pass_takes_what_its_profile_says_of_passes():
    costs, sums = truth().costs("bfloat16"), linked().sums(None, on_cpu=True)
    move = Operator("other", "move", (), 0, 650_000)
    program = Program((Work((move, move)),), 0)
    shard = split(model_config("124M"), 2)[0]
    timed = Timer(costs, sums, Beside(1.5, 4e-6, 1e-4)).steps(shard, program, {0: 0})
    seconds = 2 * (1.5 * 52.5e-6 + 4e-6)
    assert [step.seconds for step in timed.steps] == pytest.approx([1e-4, seconds])
    assert timed.parts == {"other": pytest.approx(1e-4 + seconds)}
    # Without such numbers a host that launches too slowly is waited for.
    waiting = Timer(costs, sums, Beside(launch=1e-3)).steps(shard, program, {0: 0})
    assert [step.seconds for step in waiting.steps] == [pytest.approx(2e-3)]


def test_the_load_of_a_pass_leaves_messages_out():
    operators = [Operator(part, "move", (), 0, 650_000) for part in ("other", "message")]
    load = load_of(Program((Work(tuple(operators)),), 0), truth(), "bfloat16")
    assert load == (pytest.approx(52.5e-6), 1)


def steps_of(link: LinkProfile, copy_bytes: int) -> list:
    items = (
        Work((Operator("message", "move", (), 0, copy_bytes),)),
        Begin(0, "streams", 1_000_000),
        Wait(0),
    )
    costs, sums = truth().costs("bfloat16"), link.sums(None, on_cpu=True)
    shard = split(model_config("124M"), 2)[0]
    return Timer(costs, sums, Beside()).steps(shard, Program(items, 0), {0: 0, 1: 0}).steps


def test_putting_a_message_together_counts_once():
    begin, wait = 5e-6 + 1e-4, 3e-6 + 2e-4
    copying, beginning, send, awaited, adding = steps_of(linked(), 650_000)
    assert copying.seconds == pytest.approx(52.5e-6)
    assert copying.seconds + beginning.seconds == pytest.approx(begin)
    assert send.wire > 0 and isinstance(awaited, Await) and adding.seconds == pytest.approx(wait)
    # A copy that takes longer than beginning did leaves nothing of it.
    assert len(steps_of(linked(), 65_000_000)) == 4


def test_what_an_emulated_link_holds_back_is_added_up_before():
    *_, adding, awaited = steps_of(emulated(Link(gbps=1.0), linked()), 0)
    assert isinstance(adding, Compute) and isinstance(awaited, Await)


@pytest.mark.parametrize(("compute", "wire"), [(1.0, 1.0), (1.3, 1.0), (1.2, 1.5)])
def test_how_much_compute_and_sums_disturb_each_other_is_found(compute, wire):
    alone = sum_time(1 << 20)
    long, short = 2 * alone.whole * wire, 0.5 * alone.wire

    def both(seconds):
        begin = Compute(alone.begin), Send(0, (0,), alone.wire)
        steps = [*begin, Compute(seconds), Await(0), Compute(alone.wait)]
        (timeline,) = play([steps], Contention(compute, wire))
        return timeline.seconds

    times = BesideTimes(alone, long, both(long), short, both(short))
    found = slowdowns(times)
    assert found == pytest.approx((compute, wire), rel=0.02)
    device = over_link(truth(), measurements(TINY, beside=times))
    assert device.compute_slowdown_beside_allreduce.value == found.compute


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def budget_of(clock, heard=None, seconds=10.0) -> Budget:
    emit = (lambda _: None) if heard is None else heard.append
    return Budget(Rank(0, 1, torch.device("cpu"), emit), seconds, clock)


def test_rounds_end_before_one_that_would_not_fit():
    clock = Clock()
    budget = budget_of(clock)
    count = 0
    for _ in budget.rounds(until=10.0, what="x"):
        clock.now += 1.5
        count += 1
    assert count == 6 and budget.elapsed() <= 10.0
    for _ in budget.rounds(until=10.0, what="x", least=2):  # the time is over
        clock.now += 1.0
        count += 1
    assert count == 8


def test_people_see_that_it_goes_on():
    clock, heard = Clock(), []
    budget = budget_of(clock, heard)
    for _ in range(100):
        clock.now += 0.05
        budget.tell("sums")
    assert 15 <= len(heard) <= 25
    assert all(isinstance(e, Elapsed) and e.what == "sums" for e in heard)
    assert heard == sorted(heard)


def test_shapes_that_would_take_too_long_are_left_out():
    rate = 1e11
    small = CPU.within(0.5, rate, 1e12, 2)
    assert sum(p.flops for p in small.points()) / rate <= 0.5
    assert small.rows == CPU.rows[: len(small.rows)] and len(small.rows) < len(CPU.rows)
    assert CPU.within(1e9, rate, 1e12, 2) == CPU
    narrow = CPU.within(1e9, rate, 5e7, 2)
    assert narrow.weight_bytes(2) <= 5e7 and narrow.rows == CPU.rows


def test_every_table_is_a_grid():
    tables = defaultdict(list)
    for point in CPU.points():
        key = point.operator, point.aligned, point.resident, point.table
        tables[key].append((coordinates(point.operator, point.place), 1.0))
    assert len(tables) == 15
    for points in tables.values():
        assert isinstance(correction(points), Grid)


@pytest.fixture(scope="module")
def alone():
    """This machine, by one device in this process, in a moment."""
    heard: list[Elapsed] = []
    found = calibrate(Options(devices=1, device="cpu", seconds=0.2, extent=TINY), heard.append)
    assert {e.what for e in heard} & {"operators", "passes of the engine"}
    return found


def test_a_machine_is_measured_and_every_constant_says_how(alone):
    device, link, measured = alone
    assert link is None and measured.machine.ranks == 1
    constants = [v for v in vars(device).values() if isinstance(v, Constant)]
    for constant in (*constants, *device.peak_tflop_per_second.values()):
        assert constant.basis in ("measured", "assumed") and len(constant.source) > 5
    assert "PyTorch" in device.kernel_us.source and "alone on" in device.kernel_us.source
    assert {t.operator for t in device.tables} == {
        "gemm", "scores", "values", "attention", "norm", "rms_norm", "gelu", "softmax", "copy",
        "move",
    }  # fmt: skip
    assert device.eager is not None and device.captured is not None


def test_the_profile_is_read_by_plan(alone, tmp_path, capfd):
    path = tmp_path / "machine.toml"
    write_machine(path, alone.device, linked())
    assert read_profiles([path]) == {"device": alone.device, "link": linked()}
    said = tiny.call(
        capfd, "plan", "124M", "--profile", path, "--devices", 2, "--input-len", 32,
        "--wirings", "standard,kraken", "--kraken", "published",
    )  # fmt: skip
    assert said.code == 0, said.err
    assert "as calibrated" in said.out and "shared-memory" in said.out


def test_the_command_writes_a_profile_whole_or_not_at_all(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(run, "CPU", TINY)
    monkeypatch.setattr(run, "LEAST_SECONDS", 0.0)
    path = tmp_path / "machine.toml"
    said = tiny.call(capfd, "calibrate", path, "--devices", 1, "--device", "cpu", "--time", 0.2)
    assert said.code == 0, said.err
    assert "TFLOP/s" in said.out and "wrote" in said.err
    assert set(read_profiles([path])) == {"device"}

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    written = path.read_text()
    monkeypatch.setattr(run, "time_passes", interrupted)
    again = tiny.call(capfd, "calibrate", path, "--devices", 1, "--device", "cpu", "--time", 0.2)
    assert again.code == 130
    assert path.read_text() == written and [p.name for p in tmp_path.iterdir()] == [path.name]


REFUSED = [
    ("calibrate {}/x.json", "give it the ending .toml"),
    ("calibrate {}/x.toml --devices 0", "--devices 0: needs 1 or more"),
    ("calibrate {}/x.toml --time 1", "--time 1: needs 10 seconds or more"),
    ("calibrate {}/x.toml --time nan", "--time nan: needs 10 seconds or more"),
    ("calibrate {}/x.toml --dtype int8", "--dtype int8: choose one of"),
    ("calibrate {}/x.toml --device tpu", "--device tpu: choose one of"),
    ("calibrate {}/x.toml --threads 0", "--threads 0: needs 1 or more"),
    ("calibrate {}/x.toml --link gbps=0", "gbps=0: needs more than 0"),
    ("calibrate {}/x.toml --devices 1 --link gbps=1", "one device has no link"),
    ("calibrate {}/x.toml --transport smoke", "--transport smoke: choose one of"),
]


@pytest.mark.parametrize(("command", "message"), REFUSED, ids=[c for c, _ in REFUSED])
def test_nonsense_is_refused_in_one_line(command, message, capfd, tmp_path):
    said = tiny.call(capfd, *command.format(tmp_path).split())
    assert said.code == 2
    assert len(said.complaints) == 1 and message in said.complaints[0]
    assert list(tmp_path.iterdir()) == []


def test_the_link_alone_needs_two_devices():
    with pytest.raises(KrakenError, match="one device has no link"):
        run.calibrate_link(Options(devices=1))
