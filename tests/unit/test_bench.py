"""Results are typed and say where they come from; tables and pictures are drawn from them alone."""

import io
import json
import struct
import subprocess
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from rich.console import Console

import tiny
from krakenlm import environment as environment_module
from krakenlm.bench import figures
from krakenlm.bench.allreduce import AllReduceReport, Sum
from krakenlm.bench.breakdown import Stopwatch, measure_breakdown
from krakenlm.bench.chrome_trace import chrome_trace
from krakenlm.bench.figures import (
    draw_breakdowns,
    draw_latencies,
    draw_links,
    draw_losses,
    draw_timelines,
)
from krakenlm.bench.models import Contender, contenders, contenders_of_model
from krakenlm.bench.results import PART_NAMES, LatencyReport, ModelLatency
from krakenlm.bench.runner import Runner, Sums, Timing, interleaved
from krakenlm.bench.summary import Facts, hidden_share, hideable_share, summarise
from krakenlm.bench.tables import breakdown_table, latency_table
from krakenlm.config import (
    WiringName,
    count_parameters,
    derive,
    model_config,
    with_sublayers,
)
from krakenlm.engine import trace
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.trace import Event
from krakenlm.environment import Environment
from krakenlm.errors import KrakenError
from krakenlm.model.wiring import Part
from krakenlm.ranks.launch import Rank
from krakenlm.spread import Quantiles
from krakenlm.transport.links import Link

WIRINGS = ("standard", "parallel", "ladder", "kraken")
GOLDEN = Path(__file__).parents[1] / "golden"
VERSION_1, VERSION_2 = (GOLDEN / f"latency-report-v{version}.json" for version in (1, 2))
SUMS_VERSION_1 = GOLDEN / "allreduce-report-v1.json"


def environment() -> Environment:
    return Environment(
        machine="abacus", cores=2, python="3.11", torch="2.9", transformers="5.16",
        krakenlm="0.1", commit="abc",
    )  # fmt: skip


def around(milliseconds: float) -> Quantiles:
    return Quantiles(median=milliseconds, p10=0.9 * milliseconds, p90=1.5 * milliseconds)


def made_up(**changes: Any) -> LatencyReport:
    def latency(wiring: str, milliseconds: float) -> ModelLatency:
        return ModelLatency(
            wiring=wiring,
            label=wiring,
            parameters=1000,
            prefill_chunks=1,
            units=(1, 1),
            ttft_ms=around(milliseconds),
            no_comm_ttft_ms=Quantiles(median=4.0, p10=3.0, p90=5.0),
            tpot_ms=around(milliseconds / 10),
            no_comm_tpot_ms=around(0.4),
            latency_ms=around(2 * milliseconds),
            allreduces=24,
            message_bytes=1024,
            allreduce_ms=around(1.0),
            communication_ms=around(24.0),
            exposed_ms=around(milliseconds - 4),
            hidden_share=0.25,
            hideable_share=0.5,
            speedup=20.0 / milliseconds,
            speedup_spread=around(20.0 / milliseconds),
            tpot_speedup=20.0 / milliseconds,
            breakdown_ms={part: float(i) for i, part in enumerate(PART_NAMES)},
        )

    report = LatencyReport(
        title="made up",
        command=("krakenlm", "bench", "latency"),
        size="124M",
        devices=2,
        batch_size=1,
        input_len=16,
        output_len=11,
        dtype="float32",
        iterations=5,
        warm_up=2,
        link="emulated: gbps=1,latency_us=50",
        transport="sockets",
        tensor_parallel=1,
        peak_rss_bytes=(1 << 30, 1 << 30),
        environment=environment(),
        results=tuple(latency(w, ms) for w, ms in zip(WIRINGS, (20, 16, 12, 10), strict=True)),
    )
    return replace(report, **changes)


def bare(report: LatencyReport) -> LatencyReport:
    """The same with everything left out that may be: only first tokens, against nothing."""
    results = tuple(
        ModelLatency(
            wiring=r.wiring,
            label=r.label,
            parameters=r.parameters,
            ttft_ms=r.ttft_ms,
            no_comm_ttft_ms=r.no_comm_ttft_ms,
        )
        for r in report.results
    )
    return replace(report, results=results)


def some_sums() -> AllReduceReport:
    return AllReduceReport(
        command=("krakenlm", "bench", "allreduce"),
        devices=2,
        iterations=20,
        link="real",
        environment=environment(),
        results=(
            Sum(
                transport="sockets",
                dtype="bfloat16",
                bytes=1024,
                count=512,
                time_us=around(100.0),
                algbw_gb_per_s=0.01,
                busbw_gb_per_s=0.01,
                wrong=0,
            ),
        ),
    )


REPORTS = {
    "latency": (LatencyReport.load, made_up),
    "allreduce": (AllReduceReport.load, some_sums),
}


def printed(table: Any) -> str:
    page = io.StringIO()
    Console(width=200, file=page).print(table)
    return page.getvalue()


def test_a_speedup_is_also_a_reduction():
    by_wiring = {result.wiring: result for result in made_up().results}
    assert by_wiring["kraken"].speedup == 2.0
    assert by_wiring["kraken"].reduction_percent == pytest.approx(50.0)
    assert by_wiring["standard"].reduction_percent == 0.0
    assert by_wiring["parallel"].reduction_percent == pytest.approx(20.0)
    assert bare(made_up()).results[0].reduction_percent is None


# --- rounds become results ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("exposed", "communication", "hideable", "hidden", "of_hideable"),
    [
        (0.0, 10.0, 8.0, 1.0, 1.0),  # all hidden, even what was not expected to
        (2.0, 10.0, 8.0, 0.8, 1.0),  # just what cannot hide shows
        (4.0, 10.0, 8.0, 0.6, 0.75),
        (10.0, 10.0, 8.0, 0.0, 0.0),
        (15.0, 10.0, 8.0, 0.0, 0.0),  # never below nought
        (-1.0, 10.0, 8.0, 1.0, 1.0),  # nor above one
        (4.0, 10.0, 0.0, 0.6, None),
        (1.0, 0.0, 0.0, None, None),
    ],
)
def test_shares_of_communication(exposed, communication, hideable, hidden, of_hideable):
    assert hidden_share(exposed, communication) == hidden
    assert hideable_share(exposed, communication, hideable) == of_hideable


SUMS = Sums(communication=0.010, hideable=0.008, largest=0.001)


def timing(
    model: int, ttft: float, latency: float | None = None, alone: Sums | None = SUMS
) -> Timing:
    return Timing(model, ttft, latency or ttft + 0.02, 0.008, 0.004, alone)


def test_rounds_become_medians_in_milliseconds_against_standard():
    standard, kraken = model_config("124M"), derive(model_config("124M"), 2)
    models = [Contender(config=kraken, label="k"), Contender(config=standard, label="s")]
    timings = [
        timing(model, ttft)
        for first, second in ((0.009, 0.018), (0.010, 0.030), (0.011, 0.022))
        for model, ttft in ((0, first), (1, second))
    ]
    of_kraken, of_standard = summarise(models, [Facts(12, 512, (1, 1))] * 2, timings, 6)
    assert (of_kraken.label, of_standard.wiring) == ("k", "standard")
    assert of_kraken.parameters == count_parameters(kraken)
    assert of_kraken.ttft_ms == Quantiles(
        median=pytest.approx(10.0), p10=pytest.approx(9.2), p90=pytest.approx(10.8)
    )
    assert of_kraken.tpot_ms.median == pytest.approx(20.0 / 5)
    assert of_kraken.latency_ms.median == pytest.approx(30.0)
    assert of_kraken.no_comm_ttft_ms.median == pytest.approx(8.0)
    assert of_kraken.no_comm_tpot_ms.median == pytest.approx(4.0)
    assert of_kraken.exposed_ms.median == pytest.approx(2.0)
    assert of_kraken.hidden_share == pytest.approx(0.8)
    assert of_kraken.hideable_share == pytest.approx(1.0)
    assert (of_kraken.allreduces, of_kraken.message_bytes) == (12, 512)
    # The median of the ratios 2, 3, 2, not the ratio of the medians 22 and 10.
    assert of_kraken.speedup == pytest.approx(2.0)
    assert of_kraken.speedup_spread.p90 == pytest.approx(2.8)
    assert (of_standard.speedup, of_standard.tpot_speedup) == (1.0, 1.0)


def test_without_a_standard_model_or_later_tokens_there_is_less_to_say():
    kraken = Contender(config=derive(model_config("124M"), 2), label="k")
    timings = [timing(0, 0.01, latency=0.01, alone=Sums(0.0, 0.0, 0.0))] * 2
    (result,) = summarise([kraken], [Facts(0, 0, (2,))], timings, 1)
    assert (result.speedup, result.speedup_spread, result.tpot_speedup) == (None, None, None)
    assert (result.tpot_ms, result.no_comm_tpot_ms) == (None, None)
    assert (result.communication_ms, result.hidden_share) == (None, None)
    assert result.latency_ms == result.ttft_ms


def test_without_the_sums_alone_nothing_is_said_of_what_is_hidden():
    standard = Contender(config=model_config("124M"), label="s")
    timings = [timing(0, 0.01, alone=None)] * 2
    (result,) = summarise([standard], [Facts(24, 512, (1, 1))], timings, 6)
    assert (result.allreduce_ms, result.communication_ms) == (None, None)
    assert (result.hidden_share, result.hideable_share) == (None, None)
    assert (result.exposed_ms.median, result.speedup) == (pytest.approx(2.0), 1.0)


def test_models_take_turns():
    class Fake:
        def __init__(self, model: int) -> None:
            self.model = model

        def round(self) -> int:
            return self.model

    assert list(interleaved([Fake(i) for i in range(4)], 3)) == [0, 1, 2, 3] * 3


# --- which models ------------------------------------------------------------------------------


def test_krakens_are_labelled_as_what_they_are():
    variants = ["published", "keep-width", "hardware-friendly"]
    models = contenders("124M", ["standard", "kraken"], variants, sublayers=2)
    assert [m.label for m in models] == [
        "standard",
        "kraken (published width 678)",
        "kraken (keep-width 768)",
        "kraken (hardware-friendly 704, head_dim 64)",
    ]
    assert [m.variant for m in models] == [None, *variants]
    assert models[1].config == model_config("kraken-125M-2way")
    chunked = contenders("124M", ["ladder"], ["published"], sublayers=2, prefill_chunks=[1, 2])
    assert [(m.label, m.prefill_chunks) for m in chunked] == [("ladder", 1), ("ladder", 2)]


def test_every_wiring_has_a_contender_of_the_standard_model_s_weights():
    wirings = list(get_args(WiringName))
    models = contenders("124M", wirings, ["published"], sublayers=4)
    assert [m.config.wiring for m in models] == wirings
    assert [m.config.num_sublayers for m in models] == [4, 1, 1, 1, 4, 4, 1, 1]
    described = ["shared (4-way)", "kraken-shared (published width 507)"]
    assert [m.label for m in models[1:]] == [*wirings[1:4], *described, *wirings[6:]]
    standard = model_config("124M")
    for model in models:
        if not model.config.traits.own_norms:
            assert model.config.num_attention_heads == standard.num_attention_heads


def test_a_contender_may_sum_a_part_of_the_channels():
    wirings = ["shared", "shared/2", "kraken-shared/4"]
    models = contenders("124M", wirings, ["keep-width", "hardware-friendly"], sublayers=4)
    assert [(m.label, m.config.message_parts) for m in models] == [
        ("shared (4-way)", 1),
        ("shared (4-way, 1/2 of the channels)", 2),
        ("kraken-shared (keep-width 768, 1/4 of the channels)", 4),
        ("kraken-shared (hardware-friendly 512, head_dim 64, 1/4 of the channels)", 4),
    ]
    assert models[1].config == models[0].config.replace(message_parts=2)


def test_a_contender_may_hide_the_sums_of_some_layers_only():
    wirings = ["standard", "shared/2:8-11", "lagged:0+4+8-11", "ladder:11", "lagged-layer:0-11"]
    models = contenders("124M", wirings, ["published"], sublayers=4)
    assert [(m.label, m.config.late_layers) for m in models] == [
        ("standard", ""),
        ("shared (4-way, 1/2 of the channels, layers 8-11 late)", "8-11"),
        ("lagged (layers 0,4,8-11 late)", "0,4,8-11"),
        ("ladder (layers 11 late)", "11"),
        ("lagged-layer", ""),
    ]
    timings = [timing(model, 1.0) for model in range(5)] * 2
    results = summarise(models, [Facts(24, 512, (1,))] * 5, timings, 6)
    assert [r.late_layers for r in results] == [None, "8-11", "0,4,8-11", "11", None]


def test_the_sums_that_can_hide_are_those_of_the_late_layers():
    config = tiny.model_config(
        wiring="shared", num_hidden_layers=4, heads_per_sublayer=1, late_layers="1-2"
    )
    alone = Rank(0, 1, torch.device("cpu"), lambda message: None)
    for chunks, hidden in ((1, {2}), (2, set(range(11)))):
        options = EngineOptions(emulated_ranks=2, link=Link(gbps=1.0), prefill_chunks=chunks)
        runner = Runner(0, Engine.random(config, alone, torch.float32, options), [[1, 2, 3]], 1)
        assert len(runner.messages) == chunks * 6  # 2 + 1 + 1 + 2
        assert runner._hideable == hidden


@pytest.fixture
def model_folder(tmp_path):
    """Makes the folder of a model with six heads, three for keys and values, without weights."""

    def save(**changes: Any) -> Path:
        values = {"num_sublayers": 1, "heads_per_sublayer": 6, "kv_heads_per_sublayer": 3}
        config = tiny.model_config(**{"wiring": "standard", "hidden_size": 24, **values, **changes})
        (tmp_path / "config.json").write_text(json.dumps(config.to_hf_dict()))
        return tmp_path

    return save


def test_a_saved_model_is_timed_as_it_is_and_then_in_other_wirings(model_folder):
    folder = model_folder()
    (alone,) = contenders_of_model(folder, usual_sublayers=2)
    assert (alone.label, alone.model, alone.config.num_sublayers) == ("standard", folder, 1)
    wirings = ["shared:1", "standard", "lagged", "shared/2", "ladder"]
    models = contenders_of_model(folder, wirings, usual_sublayers=3, prefill_chunks=[1, 2])
    assert [(m.label, m.prefill_chunks) for m in models[::2]] == [
        ("standard", 1),
        ("shared (3-way, layers 1 late)", 1),
        ("lagged", 1),
        ("shared (3-way, 1/2 of the channels)", 1),
        ("ladder", 1),
    ]
    assert all(m.model == folder for m in models)
    assert {m.config.num_attention_heads for m in models} == {6}
    assert {m.config.num_key_value_heads for m in models} == {3}


def test_a_late_model_keeps_its_layers_and_its_number_of_sub_layers(model_folder):
    three = {"num_sublayers": 3, "heads_per_sublayer": 2, "kv_heads_per_sublayer": 1}
    folder = model_folder(wiring="shared", late_layers="1", **three)
    own, standard, all_late = contenders_of_model(folder, ["standard", "shared"], usual_sublayers=1)
    assert (own.label, standard.label) == ("shared (3-way, layers 1 late)", "standard")
    assert all_late.label == "shared (1-way)"
    (chosen,) = contenders_of_model(folder, sublayers=1, usual_sublayers=2)
    assert chosen.config == with_sublayers(own.config, 1)


@pytest.mark.parametrize(
    ("changes", "wirings", "sublayers", "said"),
    [
        ({}, ["shared"], None, "has no shared of 2 sub-layers.*does not divide 3 key and value"),
        ({}, ["shared:2"], 3, "no shared:2 of 3 sub-layers.*late_layers='2': the model has layers"),
        ({}, ["kraken"], 3, "kraken has norms for each branch"),
        ({}, ["parallel"], None, "a standard model has 2 norms a layer"),
        ({}, [], 3, "--sublayers 3: a standard model is the same function for any number"),
        ({"wiring": "kraken"}, [], 3, "--sublayers 3: this kraken model has 1 sub-layers"),
    ],
)
def test_wirings_that_a_saved_model_does_not_have_are_refused(
    model_folder, changes, wirings, sublayers, said
):
    folder = model_folder(**changes)
    with pytest.raises(KrakenError, match=said) as refusal:
        contenders_of_model(folder, wirings, sublayers=sublayers, usual_sublayers=2)
    assert "\n" not in str(refusal.value)


def test_the_messages_of_a_prefill_are_as_wide_as_their_parts_say():
    config = tiny.model_config(
        wiring="shared", num_hidden_layers=4, heads_per_sublayer=1, message_parts=2
    )
    alone = Rank(0, 1, torch.device("cpu"), lambda message: None)
    options = EngineOptions(emulated_ranks=2, link=Link(gbps=1.0))
    runner = Runner(0, Engine.random(config, alone, torch.float32, options), [[1, 2, 3]], 1)
    # The last layer's sum and the one behind it are of the last position.
    assert [message.shape for message in runner.messages] == [
        (1, 1, 3, 8), (1, 1, 3, 8), (1, 1, 1, 8), (1, 1, 1, 16),
    ]  # fmt: skip
    assert runner.message_bytes == 3 * 8 * 4


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("125B", ["standard"], ["published"]), "125B"),
        (("kraken-125M-2way", ["standard"], ["published"]), "--size kraken-125M-2way is a Kraken"),
        (("124M", ["standard", "mamba"], ["published"]), "'mamba' is not one of"),
        (("124M", ["standard", "standard"], ["published"]), "give each name once"),
        (("124M", ["kraken"], ["wide"]), "--kraken wide"),
        (("gpt2-xl", ["kraken"], ["published"]), "gpt2-xl has no kraken of 2 sub-layers"),
        (("gpt2-xl", ["shared"], ["published"]), "gpt2-xl has no shared of 2 sub-layers"),
        (("124M", ["lagged/2"], ["published"]), "124M has no lagged/2: message_parts=2: .*shared"),
        (("124M", ["shared/5"], ["published"]), "no shared/5 of 2 sub-layers.*multiple of"),
        (("124M", ["shared/", "ladder"], ["published"]), "'shared/': write shared, or shared/2"),
        (("124M", ["shared/0"], ["published"]), "'shared/0': write shared, .* shared:0.4-11"),
        (("124M", ["shared:"], ["published"]), "'shared:': write shared, or"),
        (("124M", ["shared:1-2/2"], ["published"]), "'shared:1-2/2': write shared, or"),
        (("124M", ["lagged:9-12"], ["published"]), "no lagged:9-12: late_layers='9-12': the model"),
        (("124M", ["lagged:5-1"], ["published"]), "lagged:5-1: .* runs backwards: use 1-5"),
        (("124M", ["lagged:1+1"], ["published"]), "late_layers='1,1': give each layer once"),
        (("124M", ["kraken:1"], ["published"]), "no kraken:1 of 2 sub-layers.*late_layers='1'"),
        (("124M", ["standard:1"], ["published"]), "no standard:1: late_layers='1'"),
        (("124M", ["shared", "shared:0-11"], ["published"]), "two of them are the same model"),
        (("124M", ["sharde/2"], ["published"]), "'sharde/2' is not one of"),
    ],
)
def test_models_that_do_not_exist_are_refused(arguments, said):
    with pytest.raises(KrakenError, match=said):
        contenders(*arguments, sublayers=2)


# --- reports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("report", [made_up(), bare(made_up())], ids=["full", "bare"])
def test_a_report_round_trips_through_json(tmp_path, report):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_json()))
    assert LatencyReport.load(path) == report


def test_the_json_has_the_keys_that_readers_rely_on():
    values = json.loads(json.dumps(made_up().to_json()))
    assert (values["kind"], values["schema_version"]) == ("latency", 5)
    kraken = values["results"][3]
    assert kraken["ttft_ms"].keys() == {"median", "p10", "p90"}
    assert kraken["reduction_percent"] == pytest.approx(50.0)
    for key in ("wiring", "tpot_ms", "no_comm_ttft_ms", "allreduce_ms", "exposed_ms"):
        assert key in kraken
    for key in ("hidden_share", "hideable_share", "speedup", "speedup_spread"):
        assert key in kraken


def test_reports_of_version_1_are_read(tmp_path):
    report = LatencyReport.load(VERSION_1)
    assert [result.name for result in report.results] == list(WIRINGS)
    assert (report.input_len, report.iterations) == (192, 60)
    assert (report.link, report.output_len, report.results[0].tpot_ms) == (None, None, None)
    old = json.loads(VERSION_1.read_text())["first_token"]
    assert report.results[3].speedup == old["results"][3]["speedup"]
    path = tmp_path / "old.json"
    path.write_text(json.dumps(old))
    assert LatencyReport.load(path) == report
    path.write_text(json.dumps(report.to_json()))
    assert LatencyReport.load(path) == report
    draw_latencies(report, tmp_path / "old.png")
    assert "kraken" in printed(latency_table(report))


def test_reports_of_version_2_are_read():
    """The file is what that version wrote of ``made_up``."""
    assert LatencyReport.load(VERSION_2) == made_up()


def test_reports_of_version_3_are_read(tmp_path):
    """They knew neither weights that are not random nor layers of two kinds."""
    values = json.loads(json.dumps(made_up().to_json()))
    for table in (values, *values["results"]):
        assert {table.pop(key) for key in ("model", "late_layers") if key in table} == {None}
    path = tmp_path / "old.json"
    path.write_text(json.dumps({**values, "schema_version": 3}))
    assert LatencyReport.load(path) == made_up()


@pytest.mark.parametrize("kind", REPORTS)
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.pop("schema_version"), "is no "),
        (lambda values: values.pop("results"), "(is no |results is missing)"),
        (lambda values: values.update(kind="serving"), "is no "),
        (lambda values: values.update(extra=1), "unknown key 'extra'"),
        (lambda values: values["results"][0].update(extra=1), "unknown key 'extra'"),
        (lambda values: values["environment"].pop("commit"), "commit is missing"),
        (lambda values: values.update(devices="two"), "devices='two'"),
        (lambda values: values.update(schema_version=0), "of schema version 0"),
        (lambda values: values.update(schema_version="2"), "of schema version '2'"),
        (lambda values: values.update(schema_version=None), "of schema version None"),
    ],
)
def test_what_does_not_fit_the_schema_is_refused(tmp_path, kind, change, said):
    assert_refused(tmp_path, kind, change, said)


@pytest.mark.parametrize(
    ("kind", "change", "said"),
    [
        ("latency", lambda v: v["results"][0].pop("ttft_ms"), "ttft_ms is missing"),
        ("latency", lambda v: v["results"][0]["ttft_ms"].update(p50=1.0), "unknown key 'p50'"),
        ("latency", lambda v: v["results"][0].update(units="1,1"), "units='1,1'"),
        ("latency", lambda v: v["results"][0]["breakdown_ms"].update(norm="x"), "ms.norm='x'"),
        ("latency", lambda v: v.update(schema_version=6), "of schema version 6, .* above 5"),
        ("allreduce", lambda v: v["results"][0]["time_us"].pop("p90"), "p90 is missing"),
        ("allreduce", lambda v: v["results"][0].update(bytes=1.5), "bytes=1.5"),
        ("allreduce", lambda v: v.update(schema_version=3), "of schema version 3, .* above 2"),
    ],
)
def test_entries_are_read_strictly(tmp_path, kind, change, said):
    assert_refused(tmp_path, kind, change, said)


def assert_refused(folder: Path, kind: str, change: Callable[[Any], object], said: str) -> None:
    load, make = REPORTS[kind]
    values = json.loads(json.dumps(make().to_json()))
    change(values)
    path = folder / "report.json"
    path.write_text(json.dumps(values))
    with pytest.raises(KrakenError, match=said) as caught:
        load(path)
    assert "report.json" in str(caught.value) and "measure again" in str(caught.value)


@pytest.mark.parametrize("load", [LatencyReport.load, AllReduceReport.load])
@pytest.mark.parametrize("content", ["", "[]", "null", '{"schema_version": 1}', "\x00"])
def test_what_is_no_report_is_refused(tmp_path, load, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(KrakenError, match="measure again"):
        load(path)
    with pytest.raises(KrakenError, match="measure again"):
        load(tmp_path / "gone.json")


def test_a_report_of_one_kind_is_not_read_as_another(tmp_path):
    for old in (VERSION_1, VERSION_2):
        with pytest.raises(KrakenError, match=r"(is no report of sums|unknown key)"):
            AllReduceReport.load(old)
    with pytest.raises(KrakenError, match="is no latency report"):
        LatencyReport.load(SUMS_VERSION_1)
    path = tmp_path / "sums.json"
    path.write_text(json.dumps(some_sums().to_json()))
    with pytest.raises(KrakenError, match="is no latency report"):
        LatencyReport.load(path)


def test_reports_of_sums_are_read_and_so_are_those_of_version_1(tmp_path):
    path = tmp_path / "sums.json"
    path.write_text(json.dumps(some_sums().to_json()))
    assert AllReduceReport.load(path) == some_sums()
    old = json.loads(SUMS_VERSION_1.read_text())
    read = AllReduceReport.load(SUMS_VERSION_1)
    assert [vars(each.time_us) for each in read.results] == [r["time_us"] for r in old["results"]]
    assert (read.kind, read.devices, read.iterations) == ("allreduce", 2, 40)


# --- tables and traces -------------------------------------------------------------------------


def test_the_table_says_what_was_found_and_where():
    said = printed(latency_table(made_up()))
    line = next(line for line in said.splitlines() if "kraken" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == [
        "kraken", "0.0M", "10.00 [9.00..15.00]", "4.00", "6.00", "25%", "1.00", "2.00x", "50.0%"
    ]  # fmt: skip
    assert "link emulated: gbps=1,latency_us=50; sockets; float32; 2 devices; abacus" in said
    real = printed(latency_table(made_up(link="real")))
    assert "real link" in real and "emulated" not in real
    alone = printed(latency_table(made_up(devices=1)))
    assert "1 device;" in alone and "link" not in alone


def test_a_table_shows_no_exposure_below_nought():
    (first, *others) = made_up().results
    below = replace(first, exposed_ms=around(-1.0))
    assert "-1" not in printed(latency_table(made_up(results=(below, *others))))


def test_the_breakdown_is_a_table_with_its_sum():
    said = printed(breakdown_table(made_up()))
    line = next(line for line in said.splitlines() if "kraken" in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["kraken", *(f"{i}.00" for i in range(7)), "21.00"]
    assert "emulated" in said and "overlapped GEMM" in said


def test_a_trace_has_two_tracks_a_rank():
    events = timeline(layers=2) + timeline(rank=1, layers=2)
    trace = chrome_trace({"standard": events, "kraken": events}, made_up())
    assert "link emulated" in trace["otherData"]["conditions"]
    named = [e for e in trace["traceEvents"] if e["ph"] == "M"]
    assert [e["args"]["name"] for e in named if e["name"] == "process_name"] == [
        "standard", "kraken",
    ]  # fmt: skip
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in named if e["name"] == "thread_name"}
    assert len(threads) == 8
    spans = [e for e in trace["traceEvents"] if e["ph"] == "X"]
    assert len(spans) == 2 * len(events)
    for span in spans:
        lane = threads[span["pid"], span["tid"]]
        assert lane.endswith("communication" if span["name"] == "AllReduce" else "compute")
    assert min(span["ts"] for span in spans) == 0.0
    assert [s["dur"] for s in spans if s["name"] == "wait"] == [pytest.approx(1000.0)] * 8
    json.dumps(trace)


def test_sums_under_way_together_do_not_overlap_on_their_track():
    sums = [
        Event("AllReduce", 0, "communication", 1.0, 3.0),
        Event("AllReduce", 0, "communication", 2.0, 4.0),
    ]
    spans = [e for e in chrome_trace({"l": sums}, made_up())["traceEvents"] if e["ph"] == "X"]
    assert [(s["ts"], s["dur"]) for s in spans] == [(0.0, 2e6), (2e6, 1e6)]
    assert [s["args"]["begun"] for s in spans] == [0.0, 1e6]


# --- the breakdown -----------------------------------------------------------------------------


def test_a_stopwatch_charges_the_innermost_part():
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 15.0, 17.0])
    stopwatch = Stopwatch(lambda: next(times))
    stopwatch.start()
    stopwatch.enter("attention")
    stopwatch.enter("gemm")
    stopwatch.leave()
    stopwatch.leave()
    seconds = stopwatch.stop()
    assert (seconds["gemm"], seconds["attention"], seconds["other"]) == (3.0, 6.0, 6.0)
    assert sum(seconds.values()) == 15.0
    stopwatch.start()
    assert stopwatch.stop()["other"] == 2.0


def test_a_breakdown_finds_every_part_and_leaves_no_hook_behind():
    rank = Rank(0, 1, torch.device("cpu"), lambda _: None)
    engine = Engine.random(tiny.model_config(), rank, torch.float32)
    head = engine.head
    parts = measure_breakdown(Runner(0, engine, [[1, 2, 3]], 1))
    assert parts.keys() == PART_NAMES.keys()
    assert all(parts[part] > 0.0 for part in parts if part != "overlapped_gemm")
    for module in engine.decoder.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
    assert engine.head is head


# --- the environment ---------------------------------------------------------------------------


def test_the_environment_names_what_ran():
    import platform
    from importlib.metadata import version

    here = Environment.here(cores=3)
    assert here.cores == 3 and here.machine
    assert here.python == platform.python_version()
    assert (here.torch, here.transformers) == (version("torch"), version("transformers"))
    assert here.krakenlm == version("krakenlm")


@pytest.fixture
def checkout(tmp_path, monkeypatch) -> Path:
    """A git checkout that the package seems to lie in."""
    for command in (
        ["init", "-q"],
        ["config", "user.name", "Test"],
        ["config", "user.email", "test@example.org"],
        ["config", "commit.gpgsign", "false"],
    ):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    (tmp_path / "module.py").write_text("first")
    subprocess.run(["git", "-C", tmp_path, "add", "module.py"], check=True)
    subprocess.run(["git", "-C", tmp_path, "commit", "-qm", "first", "--no-verify"], check=True)
    monkeypatch.setattr(environment_module, "__file__", str(tmp_path / "environment.py"))
    return tmp_path


def test_the_commit_is_the_checkout_s_with_a_plus_where_it_was_changed(checkout):
    head = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert len(head) == 40
    assert Environment.here(cores=1).commit == head
    (checkout / "untracked.txt").write_text("new")
    assert Environment.here(cores=1).commit == head
    (checkout / "module.py").write_text("second")
    assert Environment.here(cores=1).commit == head + "+"


def test_outside_a_checkout_or_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(environment_module, "__file__", str(tmp_path / "environment.py"))
    assert Environment.here(cores=1).commit == ""
    monkeypatch.undo()
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Environment.here(cores=1).commit == ""


# --- pictures ----------------------------------------------------------------------------------


def size_of_png(path: Path) -> tuple[int, int]:
    """Width and height, after checking every chunk's sum and the end."""
    data = path.read_bytes()
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    place, kinds = 8, []
    while place < len(data):
        (length,) = struct.unpack(">I", data[place : place + 4])
        kind, body = data[place + 4 : place + 8], data[place + 8 : place + 8 + length]
        (checksum,) = struct.unpack(">I", data[place + 8 + length : place + 12 + length])
        assert checksum == zlib.crc32(kind + body)
        kinds.append(kind)
        place += 12 + length
    assert (kinds[0], kinds[-1]) == (b"IHDR", b"IEND")
    width, height = struct.unpack(">II", data[16:24])
    return width, height


def history(start: float) -> dict:
    return {
        "tokens_per_step": 100,
        "parameters": 10,
        "training": [{"step": step, "loss": start - step / 10} for step in (10, 20, 30)],
        "validation": [{"step": step, "loss": start - step / 20} for step in (15, 30)],
    }


def timeline(rank: int = 0, layers: int = 6) -> list[Event]:
    events = []
    for layer in range(layers):
        start = layer / 100 + rank
        events += [
            Event(f"attention {layer + 1}", rank, "compute", start, start + 0.004),
            Event("AllReduce", rank, "communication", start, start + 0.005),
            Event("wait", rank, "compute", start + 0.004, start + 0.005),
            Event(f"feed-forward {layer + 1}", rank, "compute", start + 0.005, start + 0.009),
        ]
    return events


@pytest.fixture
def drawn(monkeypatch):
    """The figures that were saved, to look into."""
    figures_saved = []
    save = figures._save

    def keep(figure, target):
        figures_saved.append(figure)
        save(figure, target)

    monkeypatch.setattr(figures, "_save", keep)
    return figures_saved


def test_losses(tmp_path, drawn):
    draw_losses({"kraken": history(9.0), "standard": history(8.0)}, tmp_path / "losses.png")
    width, height = size_of_png(tmp_path / "losses.png")
    assert (width, height) == (1050, 540)
    (axes,) = drawn[0].axes
    lines = {line.get_label(): line for line in axes.lines}
    assert set(lines) == {
        f"{wiring}, {part}" for wiring in ("kraken", "standard") for part in history(1)
        if part in ("training", "validation")
    }  # fmt: skip
    assert list(lines["kraken, training"].get_xdata()) == [1000, 2000, 3000]
    assert list(lines["kraken, training"].get_ydata()) == [8.0, 7.0, 6.0]
    assert list(lines["standard, validation"].get_xdata()) == [1500, 3000]


def test_losses_of_a_run_too_short_to_log(tmp_path):
    draw_losses({"kraken": {**history(9.0), "training": []}}, tmp_path / "losses.png")
    assert size_of_png(tmp_path / "losses.png")[0] > 500


def test_latencies_show_median_spread_and_bound(tmp_path, drawn):
    draw_latencies(made_up(), tmp_path / "latencies.png")
    assert size_of_png(tmp_path / "latencies.png")[0] > 500
    first, later = drawn[0].axes
    assert [label.get_text() for label in first.get_yticklabels()] == list(WIRINGS)
    assert [bar.get_width() for bar in first.patches] == [20, 4, 16, 4, 12, 4, 10, 4]
    assert "10.0 ms, 2.00x" in [text.get_text() for text in first.texts]
    spreads = [tuple(s[:, 0]) for c in first.collections for s in c.get_segments()]
    assert spreads == [(18.0, 30.0), (14.4, 24.0), (10.8, 18.0), (9.0, 15.0)]
    assert first.get_xlim()[1] > 30
    assert [bar.get_width() for bar in later.patches] == [2.0, 0.4, 1.6, 0.4, 1.2, 0.4, 1.0, 0.4]
    assert "link emulated: gbps=1,latency_us=50" in drawn[0].get_suptitle()


def test_first_tokens_alone_are_one_panel(tmp_path, drawn):
    draw_latencies(bare(made_up()), tmp_path / "latencies.png")
    (axes,) = drawn[0].axes
    assert [text.get_text() for text in axes.texts][:1] == ["20.0 ms"]


def test_links_are_panels_in_their_order(tmp_path, drawn):
    results = [replace(result, ttft_ms=around(7.0)) for result in made_up().results]
    links = {"slow": made_up(), "fast": made_up(results=tuple(results))}
    draw_links(links, tmp_path / "links.png")
    assert size_of_png(tmp_path / "links.png")[0] > 500
    axes = drawn[0].axes
    assert [each.get_title(loc="left") for each in axes] == ["slow", "fast"]
    assert [bar.get_width() for bar in axes[0].patches] == [20, 4, 16, 4, 12, 4, 10, 4]
    assert [bar.get_width() for bar in axes[1].patches] == [7, 4] * 4
    assert "10.0 ms, 2.00x" in [text.get_text() for text in axes[0].texts]


def test_breakdowns_are_stacked(tmp_path, drawn):
    draw_breakdowns(made_up(), tmp_path / "breakdown.png")
    assert size_of_png(tmp_path / "breakdown.png")[0] > 500
    (axes,) = drawn[0].axes
    bars = axes.patches[: len(PART_NAMES)]
    assert [bar.get_width() for bar in bars] == list(range(7))
    assert [bar.get_x() for bar in bars] == [0, 0, 1, 3, 6, 10, 15]
    assert "21.0 ms" in [text.get_text() for text in axes.texts]
    assert "link emulated" in drawn[0].get_suptitle()
    assert set(figures._PART_COLOURS) == set(PART_NAMES)


def test_timelines_show_rank_0_and_the_first_layers(tmp_path, drawn):
    timelines = {w: timeline() + timeline(rank=1) for w in ("standard", "kraken")}
    draw_timelines(timelines, tmp_path / "timelines.png", layers=2)
    assert size_of_png(tmp_path / "timelines.png")[0] > 500
    assert [axes.get_title(loc="left") for axes in drawn[0].axes] == ["standard", "kraken"]
    for axes in drawn[0].axes:
        bars = axes.patches
        assert len(bars) == 2 * 4
        assert [bar.get_x() for bar in bars[:2]] == [0.0, 0.0]  # from the first event on
        assert max(bar.get_x() + bar.get_width() for bar in bars) == pytest.approx(19.0)


def test_every_event_and_wiring_has_a_colour():
    assert set(figures._EVENT_COLOURS) == {*get_args(Part), trace.SUM, trace.WAIT}
    assert set(figures.WIRING_COLOURS) == set(get_args(WiringName))


def test_pictures_are_the_same_for_the_same_results(tmp_path):
    for name in ("first.png", "second.png"):
        draw_latencies(made_up(), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
