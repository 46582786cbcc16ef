"""``krakenlm bench`` from end to end, and what it refuses before anything is measured."""

import contextlib
import io
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import tiny
from krakenlm.bench import allreduce
from krakenlm.bench.allreduce import AllReduceReport, parse_bytes, parse_transports
from krakenlm.bench.latency import Setup, check
from krakenlm.bench.models import Contender
from krakenlm.bench.results import PART_NAMES, LatencyReport
from krakenlm.cli.main import main
from krakenlm.config import sizes
from krakenlm.errors import KrakenError
from krakenlm.transport.links import Link

pytestmark = [pytest.mark.alone, pytest.mark.usefixtures("own_signals")]
LAYERS = 2
LINK = "gbps=1,latency_us=50"


@contextlib.contextmanager
def tiny_size() -> Iterator[None]:
    """A size named ``tiny`` in the table, with a vocabulary to match."""
    size = sizes.Size(
        names=("tiny",),
        num_hidden_layers=LAYERS,
        hidden_size=32,
        num_heads=4,
        max_position_embeddings=tiny.CONTEXT,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sizes, "SIZES", (*sizes.SIZES, size))
        patch.setattr(sizes, "GPT2_VOCAB_SIZE", tiny.VOCABULARY)
        yield


class Ran(NamedTuple):
    """What one run left."""

    folder: Path
    out: str
    err: str

    def json(self, name: str) -> Any:
        return json.loads((self.folder / name).read_text(encoding="utf-8"))


def ran(folder: Path, *arguments: str) -> Ran:
    out, err = io.StringIO(), io.StringIO()
    before = signal.getsignal(signal.SIGTERM)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(sys, "argv", ["krakenlm", *arguments])
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            main(arguments)
    signal.signal(signal.SIGTERM, before)
    return Ran(folder, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def latency(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The one run of ``bench latency``: 5 models, every output."""
    folder = tmp_path_factory.mktemp("latency")
    with tiny_size():
        return ran(
            folder, "bench", "latency", "--size", "tiny", "--wirings", "standard,ladder,kraken",
            "--kraken", "published,keep-width", "--prefill-chunks", "1,2", "--link", LINK,
            "--devices", "2", "--input-len", "12", "--output-len", "3", "--batch-size", "2",
            "--num-iters", "2", "--num-iters-warmup", "1", "--dtype", "float32",
            "--output-json", "found/latency.json", "--plot", "latency.png", "--trace",
            "trace.json", "--breakdown-plot", "breakdown.png",
        )  # fmt: skip


@pytest.fixture(scope="module")
def sums(tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """The one run of ``bench allreduce``."""
    return ran(
        tmp_path_factory.mktemp("allreduce"), "bench", "allreduce", "--min-bytes", "64",
        "--max-bytes", "128", "--num-iters", "2", "--link", LINK, "--output-json", "sums.json",
    )  # fmt: skip


@pytest.mark.dist
def test_every_model_is_measured_with_every_number_of_chunks(latency):
    report = LatencyReport.load(latency.folder / "found/latency.json")
    assert [(r.wiring, r.variant, r.prefill_chunks) for r in report.results] == [
        (wiring, variant, chunks)
        for wiring, variant in (
            ("standard", None), ("ladder", None), ("kraken", "published"), ("kraken", "keep-width")
        )
        for chunks in (1, 2)
    ]  # fmt: skip
    for result in report.results:
        traits = sizes.WIRINGS[result.wiring]
        assert result.allreduces == traits.allreduces(LAYERS) * result.prefill_chunks
        assert (result.hideable_share is None) == (result.name == "standard")
        assert 0 <= result.hidden_share <= 1
        assert result.ttft_ms.median > 0 and result.tpot_ms.median > 0
        assert result.latency_ms.median > result.ttft_ms.median
        assert result.communication_ms.median >= 0.05 * result.allreduces  # the link's latency
    first = report.results[0]
    assert first.message_bytes == 2 * 12 * 32 * 4
    assert (first.speedup, first.tpot_speedup, first.units) == (1.0, 1.0, (2, 2))
    assert report.results[4].units == (1, 1)


@pytest.mark.dist
def test_the_report_says_how_it_was_made(latency):
    report = LatencyReport.load(latency.folder / "found/latency.json")
    assert report.command[:4] == ("krakenlm", "bench", "latency", "--size")
    assert (report.size, report.devices, report.batch_size) == ("tiny", 2, 2)
    assert (report.input_len, report.output_len) == (12, 3)
    assert (report.iterations, report.warm_up, report.dtype) == (2, 1, "float32")
    assert report.link == f"emulated: {LINK}"
    assert report.transport in ("shared-memory", "sockets", "process-group")
    assert len(report.peak_rss_bytes) == 2 and min(report.peak_rss_bytes) > 1 << 20
    assert report.environment.cores >= 1


def test_peers_can_be_emulated_on_one_device(tmp_path):
    """A slow link, so that its sums outlast whatever else a noisy machine does meanwhile."""
    with tiny_size():
        ran(
            tmp_path, "bench", "latency", "--size", "tiny", "--wirings",
            "standard,kraken,shared/2,kraken-shared/2", "--devices", "4", "--emulate-peers",
            "--link", "gbps=0.01,latency_us=1000", "--input-len", "12", "--output-len", "3",
            "--num-iters", "2", "--num-iters-warmup", "1", "--dtype", "float32", "--kraken",
            "keep-width", "--output-json", "latency.json", "--trace", "trace.json", "--plot",
            "latency.png",
        )  # fmt: skip
    report = LatencyReport.load(tmp_path / "latency.json")
    assert (report.devices, report.transport) == (4, "emulated-peers")
    assert report.link == "emulated: gbps=0.01,latency_us=1000"
    assert len(report.peak_rss_bytes) == 1
    for result in report.results:
        assert result.units == (1, 1, 1, 1)
        largest = 1000 * (1.5 * 12 * 32 * 4 * 8 / 1e7) + 6
        assert result.allreduce_ms.median == pytest.approx(largest, rel=0.3)
        assert result.ttft_ms.median >= result.no_comm_ttft_ms.median + largest / 2
        assert result.tpot_ms.median > result.no_comm_tpot_ms.median
    assert [result.allreduces for result in report.results] == [2 * LAYERS, *[LAYERS] * 3]
    assert [result.label for result in report.results[2:]] == [
        "shared (4-way, 1/2 of the channels)",
        "kraken-shared (keep-width 32, 1/2 of the channels)",
    ]


@pytest.fixture(scope="module")
def standard_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a standard model, laid out as two branches."""
    from krakenlm.integrations.hf import KrakenForCausalLM
    from krakenlm.integrations.hf_config import KrakenConfig

    folder = tmp_path_factory.mktemp("standard")
    config = tiny.model_config(wiring="standard", num_hidden_layers=3, qk_norm=True)
    KrakenForCausalLM(KrakenConfig.from_model_config(config)).save_pretrained(folder / "imported")
    return folder / "imported"


@pytest.mark.dist
def test_a_saved_model_is_measured_with_its_weights_in_several_wirings(standard_model):
    folder = standard_model.parent
    found = ran(
        folder, "bench", "latency", "imported", "--wirings", "shared/2:1+2,lagged:1-2", "--devices",
        "2", "--input-len", "12", "--output-len", "3", "--num-iters", "2", "--num-iters-warmup",
        "0", "--dtype", "float32", "--output-json", "latency.json",
    )  # fmt: skip
    report = LatencyReport.load(folder / "latency.json")
    assert (report.model, report.size) == ("imported", None)
    assert report.title == "imported: 12 tokens in, 3 out"
    assert [(r.label, r.late_layers, r.allreduces) for r in report.results] == [
        ("standard", None, 6),
        ("shared (2-way, 1/2 of the channels, layers 1-2 late)", "1-2", 4),
        ("lagged (layers 1-2 late)", "1-2", 4),
    ]
    assert "shared (2-way, 1/2 of the channels, layers 1-2 late)" in found.out
    assert [r.hideable_share is None for r in report.results] == [True, False, False]


@pytest.mark.dist
def test_the_breakdown_has_all_parts(latency):
    for result in latency.json("found/latency.json")["results"]:
        parts = result["breakdown_ms"]
        assert parts.keys() == PART_NAMES.keys()
        assert all(seconds >= 0 for seconds in parts.values())
        assert parts["gemm"] + parts["overlapped_gemm"] > 0 and parts["allreduce"] > 0
        overlaps = result["wiring"] != "standard" or result["prefill_chunks"] > 1
        assert (parts["overlapped_gemm"] > 0) == overlaps


@pytest.mark.dist
def test_the_trace_shows_every_model_on_every_rank(latency):
    trace = latency.json("trace.json")
    results = latency.json("found/latency.json")["results"]
    events = trace["traceEvents"]
    assert len({e["pid"] for e in events}) == len(results)
    for pid, result in enumerate(results, start=1):
        sums = [
            e for e in events
            if e["pid"] == pid and e["ph"] == "X" and e["cat"] == "communication"
        ]  # fmt: skip
        assert len(sums) == 2 * result["allreduces"]
        assert len({e["tid"] for e in sums}) == 2


@pytest.mark.dist
def test_every_output_says_that_the_link_is_emulated(latency, sums):
    assert latency.out.count(f"link emulated: {LINK}") == 2  # latencies and breakdown
    assert f"emulated: {LINK}" in latency.json("found/latency.json")["link"]
    assert f"emulated: {LINK}" in latency.json("trace.json")["otherData"]["conditions"]
    assert f"link emulated: {LINK}" in sums.out
    assert f"emulated: {LINK}" in sums.json("sums.json")["link"]


@pytest.mark.dist
def test_tables_go_to_stdout_and_notes_to_stderr(latency):
    assert "kraken (keep-width 32), 2 chunks" in latency.out
    assert "overlapped GEMM" in latency.out
    written = {p.relative_to(latency.folder).as_posix() for p in latency.folder.rglob("*.*")}
    assert written == {"found/latency.json", "latency.png", "trace.json", "breakdown.png"}
    for name in written:
        assert f"wrote {name}" in latency.err
    assert "timing" in latency.err and "timing" not in latency.out


@pytest.mark.dist
def test_sums_are_right_over_every_transport(sums):
    values = sums.json("sums.json")
    assert (values["kind"], values["schema_version"]) == ("allreduce", 2)
    report = AllReduceReport.load(sums.folder / "sums.json")
    assert json.loads(json.dumps(report.to_json())) == values
    results = values["results"]
    kinds = {(r["transport"], r["dtype"]) for r in results}
    assert {("process-group", "bfloat16"), ("process-group", "float32")} <= kinds
    assert all(r["wrong"] == 0 for r in results)
    assert [r["bytes"] for r in results] == [64, 128] * len(kinds)
    for result in results:
        assert result["count"] == result["bytes"] // (4 if result["dtype"] == "float32" else 2)
        # Over this link a sum cannot take less than the latency.
        assert result["time_us"]["p10"] >= 50
        bandwidth = result["bytes"] / result["time_us"]["median"] / 1000
        assert result["algbw_gb_per_s"] == pytest.approx(bandwidth)
        assert result["busbw_gb_per_s"] == pytest.approx(bandwidth)  # two ranks: the same
    rows = [line.split() for line in sums.out.splitlines() if line and not line.startswith("#")]
    assert [int(row[0]) for row in rows] == [r["bytes"] for r in results]
    assert {len(row) for row in rows} == {9} and {tuple(row[3:5]) for row in rows} == {
        ("sum", "-1")
    }
    for heading in ("size", "count", "type", "redop", "root", "time", "algbw", "busbw", "#wrong"):
        assert heading in sums.out


# --- what is refused, before anything is started -----------------------------------------------


@pytest.fixture
def refused(capfd, tmp_path, monkeypatch):
    """Runs a command that has to end in one line with exit code 2, and leave nothing."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> str:
        before = tiny.snapshot(tmp_path)
        outcome = tiny.call(capfd, "bench", *arguments)
        assert (outcome.code, outcome.out) == (2, ""), outcome
        assert tiny.snapshot(tmp_path) == before
        (line,) = outcome.err.strip().splitlines()
        assert line.startswith("krakenlm: ")
        return line

    return run


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--size 123M", "123M"),
        ("--wirings standard,mamba", "'mamba' is not one of"),
        ("--kraken narrow", "--kraken narrow"),
        ("--devices 0", "--devices 0: needs 1 or more"),
        ("--devices 13 --wirings ladder", "--devices 13"),
        ("--devices 5", "124M has no kraken of 5 sub-layers"),
        ("--devices 2 --sublayers 4 --placement 3,2", "--placement 3,2"),
        ("--devices 2 --placement fast", "--placement fast"),
        ("--devices 3 --tensor-parallel 2 --wirings kraken", "--devices 3 is not a multiple"),
        ("--input-len 1024 --output-len 2", "--input-len 1024 and --output-len 2"),
        ("--input-len 0", "--input-len 0"),
        ("--output-len 0", "--output-len 0"),
        ("--batch-size 0", "--batch-size 0"),
        ("--num-iters 1", "--num-iters 1: needs 2 or more"),
        ("--num-iters-warmup -1", "--num-iters-warmup -1"),
        ("--dtype int8", "--dtype int8"),
        ("--device tpu", "--device tpu"),
        ("--threads 0", "--threads 0: needs 1 or more"),
        ("--link slow", "--link slow"),
        ("--link gbps=0", "--link gbps=0"),
        ("--link gbps=1 --devices 1", "one device has no link"),
        ("--emulate-peers", "--emulate-peers: needs a link"),
        ("--emulate-peers --link gbps=1 --transport sockets", "nothing is carried"),
        ("--emulate-peers --link gbps=1 --placement auto", "nobody to measure"),
        ("--emulate-peers --link gbps=1 --devices 1", "one device has no link"),
        ("--transport pigeon", "--transport pigeon: choose one of auto, shared-memory"),
        ("--prefill-chunks 0", "--prefill-chunks 0"),
        ("--prefill-chunks two", "--prefill-chunks two"),
        ("--prefill-chunks 2,2", "--prefill-chunks 2,2"),
        ("--plot latency.svg", "latency.svg: pictures are PNG"),
        ("--breakdown-plot b.jpg", "b.jpg"),
        ("--output-json .", "cannot write .: it is a folder"),
        ("--output-json /proc/latency.json", "cannot write /proc/latency.json"),
    ],
)
def test_what_cannot_be_measured_is_refused(refused, arguments, said):
    assert said in refused("latency", *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("--devices 1", "--devices 1: needs 2 or more"),
        ("--dtype int8", "--dtype int8"),
        ("--min-bytes none", "--min-bytes none"),
        ("--min-bytes 2K --max-bytes 1K", "--max-bytes 1024: is less than --min-bytes 2048"),
        ("--transports nccl", "--transports nccl"),
        ("--num-iters 0", "--num-iters 0"),
        ("--output-json .", "cannot write .: it is a folder"),
    ],
)
def test_sums_that_cannot_be_timed_are_refused(refused, arguments, said):
    assert said in refused("allreduce", *arguments.split())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("nowhere", "nowhere/config.json is missing: give the folder of a saved model"),
        ("model --size 124M", "--size 124M: model has a size of its own: give one of the two"),
        ("model --kraken keep-width", "--kraken keep-width: model has a size of its own"),
        ("model --wirings", "--wirings"),
        ("model --wirings shared --sublayers 3", "model has no shared of 3 sub-layers"),
        ("model --wirings standard,lagged:3", "late_layers='3': the model has layers 0 to 2"),
        ("model --devices 5", "--devices 5"),
        ("model --input-len 30 --output-len 4", "holds 32 tokens"),
    ],
)
def test_what_cannot_be_measured_of_a_saved_model_is_refused(
    refused, standard_model, tmp_path, arguments, said
):
    (tmp_path / "model").symlink_to(standard_model)
    assert said in refused("latency", *arguments.split())


def test_a_damaged_model_is_not_measured(capfd, standard_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(standard_model, tmp_path / "model")
    (weights,) = (tmp_path / "model").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-100])
    lengths = ("--input-len", 8, "--output-len", 2)
    outcome = tiny.call(capfd, "bench", "latency", "model", "--devices", 1, *lengths)
    (line,) = outcome.complaints
    assert (outcome.code, outcome.out) == (2, "")
    assert "model.safetensors is damaged or truncated" in line


def test_a_file_that_is_there_stays_when_nothing_is_measured(refused, tmp_path):
    (tmp_path / "latency.json").write_text("an older result")
    refused("latency", "--output-json", "latency.json", "--plot", "/proc/latency.png")


def test_a_group_without_a_command_shows_its_help(capfd):
    outcome = tiny.call(capfd, "bench")
    assert outcome.code == 2 and "allreduce" in outcome.out and outcome.complaints == []


def test_only_kraken_is_placed():
    options = Setup(placement=(3, 1), tensor_parallel=1, link=Link(gbps=1.0)).options
    kraken = Contender(config=tiny.model_config(num_sublayers=4), label="kraken")
    flat = tiny.model_config(wiring="standard", num_sublayers=1, heads_per_sublayer=4)
    standard = Contender(config=flat, label="standard", prefill_chunks=2)
    assert options(kraken).placement == (3, 1)
    assert (options(standard).placement, options(standard).prefill_chunks) == (None, 2)
    assert options(kraken).link == options(standard).link == Link(gbps=1.0)
    check([kraken, standard], Setup(placement=(3, 1), input_len=8, output_len=2))


def test_sizes_of_messages():
    assert [parse_bytes("--x", text) for text in ("512", "1K", "4mb", "2G")] == [
        512, 1 << 10, 4 << 20, 2 << 30,
    ]  # fmt: skip
    for text in ("", "0", "K", "1.5K", "-1", "1T"):
        with pytest.raises(KrakenError, match="--x"):
            parse_bytes("--x", text)
    assert parse_transports("sockets,process-group") == ("sockets", "process-group")
    assert "auto" not in parse_transports("all")
    assert allreduce.Sweep(min_bytes=3, max_bytes=13).sizes() == [3, 6, 12]
