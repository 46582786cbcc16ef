"""Profiles of a device and of a link, from what was measured of a machine."""

import dataclasses
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import NamedTuple

from krakenlm.calibrate.measurements import Measurements
from krakenlm.calibrate.passes import Fitted, Load, contender, fit, load_of, program_of
from krakenlm.calibrate.points import Point
from krakenlm.calibrate.sums import SumTime, slowdowns
from krakenlm.errors import KrakenError
from krakenlm.plan.constants import SCHEMA_VERSION, Constant, Table
from krakenlm.plan.device import DeviceProfile
from krakenlm.plan.link import Kernel, LinkProfile, shape_of
from krakenlm.plan.measured import CacheMisses, OperatorTable, PassCosts
from krakenlm.plan.program import Operator

NAME = "this-machine"
_US, _GIB, _MIB = 1e6, 2**30, 2**20
_FUSED_HEAD = {"cpu": 100000.0, "cuda": 256.0}
_TILE = {"cpu": 1.0, "cuda": 128.0}
_LEAST_WIRE_SECONDS = 1e-8
_FASTEST_GB = 1e6
_PROMPT_ROWS = 128


def device_profile(measured: Measurements) -> DeviceProfile:
    """Of each of the ranks' devices."""
    bare = _without_passes(measured)
    if not measured.probes:
        return bare
    times = [time for _, time in measured.probes]
    prompts, tokens = (_loads(measured, bare, decodes=decodes) for decodes in (False, True))
    eager = fit(prompts, [time.silent_ttft for time in times])
    captured = fit(tokens, [time.silent_tpot for time in times])
    is_cpu = measured.machine.device_type == "cpu"
    # Where the host is what takes time: the least that any prompt takes.
    launch = (
        eager.operator
        if is_cpu
        else min(
            time.silent_ttft / load.operators for time, load in zip(times, prompts, strict=True)
        )
    )
    said = _Says(measured)
    return dataclasses.replace(
        bare,
        launch_us=said.measured(launch * _US, "what a pass of the engine takes an operator"),
        # On a GPU the host launches beside the device, and launch_us says how fast.
        eager=_costs(said, eager, "prompts") if is_cpu else None,
        captured=_costs(said, captured, "tokens"),
    )


class _Says(NamedTuple):
    """Makes constants with their sources."""

    of: Measurements

    def measured(self, value: float, how: str) -> Constant:
        source = f"krakenlm calibrate: {how}; {self.of.machine.in_words}"
        return Constant(value=value, basis="measured", source=source)

    def assumed(self, value: float, why: str) -> Constant:
        return Constant(value=value, basis="assumed", source=why)


def _without_passes(measured: Measurements) -> DeviceProfile:
    machine, said = measured.machine, _Says(measured)
    is_cpu = machine.device_type == "cpu"
    products = [(p, s) for p, s in measured.points if p.operator == "gemm" and p.aligned]
    peak = max(point.flops / seconds for point, seconds in products)
    attention = [(p, s) for p, s in measured.points if p.operator == "attention" and p.aligned]
    best = max(point.flops / seconds for point, seconds in attention)
    moves = sorted((p.place[0], s) for p, s in measured.points if p.operator == "move")
    compute, wire = _slowdowns(measured)
    profile = DeviceProfile(
        kind="device",
        schema_version=SCHEMA_VERSION,
        name=NAME,
        title=f"{machine.processor}, as calibrated",
        processor="cpu" if is_cpu else "gpu",
        usual_link="1gbe" if is_cpu else "pcie4",
        memory_gib=said.measured(machine.memory_bytes / _GIB, "as the system gives it"),
        reserved_gib=said.measured(
            machine.reserved_bytes / _GIB, "what a rank held before it had weights"
        ),
        peak_tflop_per_second={
            measured.dtype: said.measured(peak * 1e-12, "the fastest of all products")
        },
        bandwidth_gb_per_second=said.measured(
            moves[-1][0] / moves[-1][1] * 1e-9, f"an addition of {moves[-1][0]} bytes"
        ),
        gemm_share_of_peak=said.assumed(1.0, "the peak is that of a product"),
        attention_share_of_peak=said.measured(
            min(best / peak, 1.0), "the fastest attention over the fastest product"
        ),
        share_of_bandwidth=said.assumed(1.0, "the rate is one that was reached"),
        multiprocessors=said.measured(machine.multiprocessors, "as the library gives it")
        if not is_cpu
        else said.assumed(1.0, "a rank's cores work on one thing"),
        gemm_tile_elements=said.assumed(
            _TILE[machine.device_type], "tables of products correct it"
        ),
        kernel_us=said.measured(
            moves[0][1] * _US,
            f"an addition of {moves[0][0]} bytes" + ("" if is_cpu else ", in a CUDA graph"),
        ),
        launch_us=said.assumed(0.0, "no passes were measured"),
        fused_head_dim=said.assumed(
            _FUSED_HEAD[machine.device_type],
            "attention in blocks takes any head" if is_cpu else "widest head of fused kernels",
        ),
        unaligned_gemm_slowdown=said.assumed(1.0, "no such products were measured"),
        compute_slowdown_beside_allreduce=compute,
        allreduce_slowdown_beside_compute=wire,
        tables=_tables(measured),
        misses=_misses(measured),
    )
    return _with_unaligned(measured, profile, said)


def _slowdowns(measured: Measurements) -> tuple[Constant, Constant]:
    """Of compute beside a sum, and of a sum beside compute."""
    said = _Says(measured)
    if measured.beside is None:
        none = said.assumed(1.0, "no sums were measured")
        return none, none
    how = f"a sum of {measured.beside.sum.nbytes} bytes over {measured.transport} beside products"
    compute, wire = slowdowns(measured.beside)
    return said.measured(compute, how), said.measured(wire, how)


def over_link(device: DeviceProfile, measured: Measurements) -> DeviceProfile:
    """The same device beside a link that was measured by itself."""
    compute, wire = _slowdowns(measured)
    return dataclasses.replace(
        device, compute_slowdown_beside_allreduce=compute, allreduce_slowdown_beside_compute=wire
    )


def _with_unaligned(measured: Measurements, profile: DeviceProfile, said: _Says) -> DeviceProfile:
    """How much longer products of odd widths take than the aligned tables say."""
    aligned = dataclasses.replace(
        profile, tables=tuple(t for t in profile.tables if t.aligned and t.operator == "gemm")
    )
    costs = aligned.costs(measured.dtype)
    found = [
        seconds / costs(_gemm(point)).seconds
        for point, seconds in measured.points
        if point.operator == "gemm" and not point.aligned and point.place[0] >= _PROMPT_ROWS
    ]
    if not found:
        return profile
    slower = said.measured(
        max(statistics.median(found), 1.0), "products of odd widths over those of multiples of 8"
    )
    return dataclasses.replace(profile, unaligned_gemm_slowdown=slower)


def _gemm(point: Point) -> Operator:
    m, k, n = point.place
    return Operator("gemm", "gemm", (1, m, k, n), 0, 0)


def _tables(measured: Measurements) -> tuple[OperatorTable, ...]:
    rows: defaultdict[tuple[str, bool, bool, str], list[tuple[float, ...]]] = defaultdict(list)
    for point, seconds in measured.points:
        key = point.operator, point.aligned, point.resident, point.table
        rows[key].append((*point.place, round(seconds * _US, 4)))
    how = f"krakenlm calibrate: medians of rounds, the slowest rank; {measured.machine.in_words}"
    return tuple(
        OperatorTable(
            source=how,
            rows_us=tuple(found),
            operator=operator,  # type: ignore[arg-type]  # a point's
            dtype=measured.dtype,
            aligned=aligned,
            resident=resident,
        )
        for (operator, aligned, resident, _), found in rows.items()
    )


def _misses(measured: Measurements) -> CacheMisses | None:
    """From how much longer a product takes, the more bytes of weights are read in turn."""
    if len(measured.reads) < 2:
        return None
    times = [seconds for _, seconds in measured.reads]
    least, most = min(times), max(times)
    if most < 1.05 * least:  # no cache to speak of
        return None
    rows: list[tuple[float, float]] = []
    for nbytes, seconds in sorted(measured.reads):
        share = (seconds - least) / (most - least)
        # More bytes never miss less; what looks like it is noise.
        rows.append((nbytes / _MIB, max(share, rows[-1][1] if rows else 0.0)))
    how = f"krakenlm calibrate: weights read in turn; {measured.machine.in_words}"
    return CacheMisses(source=how, rows_mib_share=tuple(rows))


def _loads(measured: Measurements, bare: DeviceProfile, *, decodes: bool) -> list[Load]:
    ranks = measured.machine.ranks
    loads = []
    for probe, _ in measured.probes:
        model = contender(probe, ranks, measured.vocabulary_size)
        program = program_of(model, ranks, probe.tokens, measured.dtype, decodes=decodes)
        loads.append(load_of(program, bare, measured.dtype))
    return loads


def _costs(said: _Says, fitted: Fitted, what: str) -> PassCosts:
    models = len(said.of.probes)
    how = f"{models} small models' {what}, which it meets within {fitted.error:.1%} in the median"
    return PassCosts(
        operators_slowdown=said.measured(fitted.slowdown, how),
        operator_us=said.measured(fitted.operator * _US, how),
        pass_us=said.measured(fitted.once * _US, how),
    )


def link_profile(measured: Measurements) -> LinkProfile | None:
    """Of what is between the ranks; None where one device has no link."""
    if not measured.sums:
        return None
    said = _Says(measured)
    all_ranks = [t for t in measured.sums if t.ranks == measured.machine.ranks]
    over = f"sums over {measured.transport} between {measured.machine.ranks} ranks"
    is_cpu = measured.machine.device_type == "cpu"
    algorithm = "exchange" if is_cpu else "ring"
    step, per_byte = _line(all_ranks, lambda t: t.wire)
    steps, volume = shape_of(algorithm, measured.machine.ranks)  # type: ignore[arg-type]
    rate = min(volume / max(per_byte, 1e-18) * 1e-9, _FASTEST_GB)
    halves = {}
    if is_cpu:
        for name, part in (("begin", lambda t: t.begin), ("wait", lambda t: t.wait)):
            fixed, each = _line(all_ranks, part)
            halves[f"{name}_us"] = said.measured(fixed * _US, f"{over}, where they {name}")
            halves[f"{name}_ns_per_byte"] = said.measured(each * 1e9, f"{over}, where they {name}")
    table = Table(
        source=f"krakenlm calibrate: {over}, less what they compute; {measured.machine.in_words}",
        rows_us=tuple(
            (t.nbytes, t.ranks, round(max(t.wire, _LEAST_WIRE_SECONDS) * _US, 4))
            for t in measured.sums
        ),
    )
    kernel = Kernel(
        algorithm=algorithm,  # type: ignore[arg-type]
        base_us=said.assumed(0.0, "all of it is steps"),
        step_us=said.measured(max(step, _LEAST_WIRE_SECONDS) / steps * _US, over),
        gb_per_second=said.measured(rate, over),
        table=table,
        **halves,
    )
    return LinkProfile(
        kind="link",
        schema_version=SCHEMA_VERSION,
        name=NAME,
        title=f"{measured.transport}, as calibrated",
        pipelined=is_cpu,
        usual_kernel=measured.transport,
        kernels={measured.transport: kernel},
    )


def _line(times: Sequence[SumTime], part: Callable[[SumTime], float]) -> tuple[float, float]:
    """Seconds of a message and of each byte, neither negative; relative errors count."""
    values = [max(part(time), _LEAST_WIRE_SECONDS) for time in times]
    loads = [Load(time.nbytes * 1e-9, 1) for time in times]
    if not values:
        raise KrakenError("--devices: no sums were measured")
    fitted = fit(loads, values)
    return fitted.operator + fitted.once, fitted.slowdown * 1e-9
