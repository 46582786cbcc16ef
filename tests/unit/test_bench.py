"""Results are typed and say where they come from; pictures are drawn from them alone."""

import importlib
import json
import statistics
import struct
import subprocess
import zlib
from pathlib import Path

import pytest

from krakenlm.bench import figures, first_token, results
from krakenlm.bench.figures import draw_latencies, draw_losses, draw_timelines
from krakenlm.bench.results import Environment, LatencyReport, Quantiles, WiringLatency
from krakenlm.errors import KrakenError
from krakenlm.parallel.trace import Event

WIRINGS = ("standard", "parallel", "ladder", "kraken")


def environment() -> Environment:
    return Environment(
        machine="abacus", cores=2, python="3.11", torch="2.9", transformers="5.16",
        krakenlm="0.1", commit="abc",
    )  # fmt: skip


def made_up() -> LatencyReport:
    def latency(wiring: str, milliseconds: float) -> WiringLatency:
        return WiringLatency(
            wiring=wiring,
            parameters=1000,
            ttft_ms=Quantiles(median=milliseconds, p10=0.9 * milliseconds, p90=1.5 * milliseconds),
            no_comm_ttft_ms=Quantiles(median=4.0, p10=3.0, p90=5.0),
            speedup=20.0 / milliseconds,
        )

    return LatencyReport(
        title="made up",
        devices=2,
        prompt_tokens=16,
        dtype="float32",
        repetitions=5,
        environment=environment(),
        results=tuple(latency(w, ms) for w, ms in zip(WIRINGS, (20, 16, 12, 10), strict=True)),
    )


def test_quantiles_of_values_known_by_hand():
    assert Quantiles.of([3.0, 1.0, 2.0]) == Quantiles(median=2.0, p10=1.2, p90=2.8)
    values = [float(value) for value in range(101)]
    assert Quantiles.of(values[::-1]) == Quantiles(median=50.0, p10=10.0, p90=90.0)
    assert Quantiles.of([5.0, 5.0]) == Quantiles(median=5.0, p10=5.0, p90=5.0)
    with pytest.raises(statistics.StatisticsError):
        Quantiles.of([])


def test_a_speedup_is_also_a_reduction():
    by_wiring = {result.wiring: result for result in made_up().results}
    assert by_wiring["kraken"].speedup == 2.0
    assert by_wiring["kraken"].reduction_percent == pytest.approx(50.0)
    assert by_wiring["standard"].reduction_percent == 0.0
    assert by_wiring["parallel"].reduction_percent == pytest.approx(20.0)


def test_rounds_become_medians_in_milliseconds_against_standard():
    config = first_token.ModelConfig()
    rounds = [
        first_token._Repetition(
            {"standard": 0.02 + step / 1000, "kraken": 0.01 + step / 1000},
            {"standard": 0.008, "kraken": 0.004},
        )
        for step in (-1, 0, 1)
    ]
    standard, kraken = first_token._summarise({"standard": config, "kraken": config}, rounds)
    assert (standard.wiring, kraken.wiring) == ("standard", "kraken")
    assert standard.ttft_ms.median == pytest.approx(20.0)
    assert kraken.ttft_ms == Quantiles(
        median=pytest.approx(10.0), p10=pytest.approx(9.2), p90=pytest.approx(10.8)
    )
    assert kraken.no_comm_ttft_ms.median == pytest.approx(4.0)
    assert (standard.speedup, kraken.speedup) == (1.0, pytest.approx(2.0))


def test_a_report_round_trips_through_json(tmp_path):
    path = tmp_path / "report.json"
    path.write_text(json.dumps(made_up().to_json()))
    assert LatencyReport.load(path) == made_up()


@pytest.mark.parametrize(
    "change",
    [
        lambda values: values.update(schema_version=2),
        lambda values: values.pop("schema_version"),
        lambda values: values.pop("results"),
        lambda values: values.update(extra=1),
        lambda values: values["results"][0].pop("speedup"),
        lambda values: values["results"][0]["ttft_ms"].update(p50=1.0),
        lambda values: values["environment"].pop("commit"),
    ],
    ids=["newer", "no schema", "no results", "unknown key", "entry", "quantiles", "environment"],
)
def test_another_schema_is_refused(tmp_path, change):
    values = made_up().to_json()
    values = json.loads(json.dumps(values))
    change(values)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(values))
    with pytest.raises(KrakenError, match=r"report\.json is not a latency report of this version"):
        LatencyReport.load(path)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"schema_version": 1}', "\x00"])
def test_what_is_no_report_is_refused(tmp_path, content):
    path = tmp_path / "report.json"
    path.write_text(content)
    with pytest.raises(KrakenError, match="measure again"):
        LatencyReport.load(path)
    with pytest.raises(KrakenError, match="measure again"):
        LatencyReport.load(tmp_path / "gone.json")


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
    """A git checkout that the module seems to lie in."""
    for command in (
        ["init", "-q"],
        ["config", "user.name", "Test"],
        ["config", "user.email", "test@example.org"],
        ["config", "commit.gpgsign", "false"],
    ):
        subprocess.run(["git", "-C", tmp_path, *command], check=True)
    (tmp_path / "results.py").write_text("first")
    subprocess.run(["git", "-C", tmp_path, "add", "results.py"], check=True)
    subprocess.run(["git", "-C", tmp_path, "commit", "-qm", "first", "--no-verify"], check=True)
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
    return tmp_path


def test_the_commit_is_the_checkout_s_with_a_plus_where_it_was_changed(checkout):
    head = subprocess.run(
        ["git", "-C", checkout, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert len(head) == 40
    assert Environment.here(cores=1).commit == head
    (checkout / "untracked.txt").write_text("new")
    assert Environment.here(cores=1).commit == head
    (checkout / "results.py").write_text("second")
    assert Environment.here(cores=1).commit == head + "+"


def test_outside_a_checkout_or_without_git_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(results, "__file__", str(tmp_path / "results.py"))
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
    (axes,) = drawn[0].axes
    assert [label.get_text() for label in axes.get_yticklabels()] == list(WIRINGS)
    assert [bar.get_width() for bar in axes.patches] == [20, 4, 16, 4, 12, 4, 10, 4]
    assert "10.0 ms, 2.00x" in [text.get_text() for text in axes.texts]
    spreads = [tuple(s[:, 0]) for c in axes.collections for s in c.get_segments()]
    assert spreads == [(18.0, 30.0), (14.4, 24.0), (10.8, 18.0), (9.0, 15.0)]
    assert axes.get_xlim()[1] > 30


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
    trace = importlib.import_module("krakenlm.parallel.trace")
    source = Path(trace.__file__).read_text()
    for name in ("attention", "feed-forward", "attention and feed-forward", "AllReduce", "wait"):
        assert f'"{name}"' in source
        assert name in figures._EVENT_COLOURS
    assert set(figures.WIRING_COLOURS) == set(WIRINGS)


def test_pictures_are_the_same_for_the_same_results(tmp_path):
    for name in ("first.png", "second.png"):
        draw_latencies(made_up(), tmp_path / name)
    assert (tmp_path / "first.png").read_bytes() == (tmp_path / "second.png").read_bytes()
