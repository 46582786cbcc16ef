"""What docs/adapt.md shows of adaptations, from the files that the command writes."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("own_signals")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))
import adapt_page  # noqa: E402
import publish_adapt  # noqa: E402
import recording  # noqa: E402
from krakenlm.bench.results import LatencyReport  # noqa: E402
from krakenlm.cli.main import main  # noqa: E402
from publish_adapt import Case  # noqa: E402


def report(**changes) -> dict:
    """An ``adapt.json`` of a model of 30 layers."""
    own = {"original": 40.0, "rewired": 60.0, "adapted": 42.0}
    other = {"original": 20.0, "rewired": 50.0, "adapted": 21.5}
    values = {
        "wiring": "shared",
        "sublayers": [3],
        "late_layers": "15-29",
        "num_hidden_layers": 30,
        "tokens": 2_000_000,
        "perplexity": {"data": own, "other": other},
        "by_sublayers": {},
        "superglue": {},
        "latency": [],
    }
    return {**values, **changes}


@pytest.fixture
def keep(tmp_path, monkeypatch):
    monkeypatch.setattr(adapt_page, "RESULTS", tmp_path)

    def write(name: str, values: dict) -> None:
        (tmp_path / name).write_text(json.dumps(values))

    return write


def test_without_results_the_tables_say_so_and_nothing_is_drawn(keep, tmp_path):
    for table in adapt_page.TABLES.values():
        assert table() == "The runs are still to come.\n"
    adapt_page.draw()
    assert not list(tmp_path.iterdir())


def test_rows_hold_what_perplexities_rose_by(keep):
    keep("a.json", report())
    keep("a-history.json", {"training": []})
    keep("cases.json", {"texts": ["text"]})
    keep("b.json", report(wiring="lagged", late_layers="", tokens=200_000))
    shared, lagged = adapt_page.quality_table().splitlines()[2:]
    assert shared == (
        "| shared | 3 | 15: 15-29 | 2M | +50.0 % | +5.0 % | +150.0 % | +7.5 % |  |  |"
    )
    assert lagged.startswith("| lagged | 3 | 30: 0-29 | 0.2M | +50.0 %")


def test_scores_are_means_over_tasks(keep):
    def scores(*values: float) -> dict:
        return {"scores": [{"score": value} for value in values]}

    superglue = {"original": scores(50, 60), "rewired": scores(0, 0), "adapted": scores(50, 58)}
    keep("a.json", report(superglue=superglue))
    assert adapt_page.quality_table().splitlines()[2].endswith("| 55.0 | 54.0 |")


def test_first_tokens_are_those_of_the_latency_report(keep):
    path = next((recording.RESULTS / "latency" / "one-host").glob("run-1.json"))
    latency = asdict(LatencyReport.load(path))
    by_wiring = {result["wiring"]: result for result in reversed(latency["results"])}
    latency["results"] = [by_wiring["standard"], by_wiring["shared"]]
    keep("a.json", report(latency=[latency]))
    (row,) = adapt_page.latency_table().splitlines()[2:]
    shared = by_wiring["shared"]
    over = 100 * (shared["ttft_ms"]["median"] / shared["no_comm_ttft_ms"]["median"] - 1)
    assert f"| {by_wiring['standard']['ttft_ms']['median']:.0f} ms |" in row
    assert f"| {shared['speedup']:.2f}x | {over:+.0f} % |" in row


def test_the_picture_has_a_curve_a_wiring_and_a_panel_a_number_of_tokens(keep, tmp_path):
    keep("a.json", report())
    keep("b.json", report(late_layers=""))
    keep("c.json", report(wiring="ladder", tokens=200_000))
    keep("d.json", report(sublayers=[1, 3]))  # another question
    adapt_page.draw()
    assert (tmp_path / "adapt.png").read_bytes().startswith(b"\x89PNG")


def test_cases_have_names_of_their_own_and_those_that_say_most_come_first():
    cases = publish_adapt.cases(2_000_000, 200_000)
    names = [case.name for case in cases]
    assert len(set(names)) == len(names)
    assert names[:3] == ["shared-15-29-2M", "shared-22-2M", "shared-all-2M"]
    assert Case("shared", "all", 2_000_000, "1,3").name == "shared-all-n13-2M"


def test_the_commands_that_are_run_are_ones_that_krakenlm_takes(tmp_path, monkeypatch, capsys):
    """Up to the model itself: options are parsed, then the model is missed."""
    monkeypatch.chdir(tmp_path)
    options = publish_adapt._options().parse_args(
        [
            "--model",
            "m",
            "--text",
            "t",
            "--other",
            "o",
            "--superglue",
            "s",
            "--set",
            "training.seed=1",
        ]
    )
    for case in publish_adapt.cases(options.tokens, options.short)[:2]:
        with pytest.raises(SystemExit) as ended:
            main(list(map(str, publish_adapt._adapt(case, options))))
        assert ended.value.code == 2 and "config.json is missing" in capsys.readouterr().err
