"""The protocol of ``make parity``: what it trains, what it keeps, and how it sums up."""

import json
import math
import statistics
import sys
from pathlib import Path

import pytest

import tiny
from krakenlm.errors import KrakenError
from krakenlm.files import write_json
from krakenlm.train.history import History, Loss

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import parity  # noqa: E402
import parity_page  # noqa: E402
from parity import Model, Protocol, try_options, tune_and_repeat  # noqa: E402

RATES = (0.01, 0.02, 0.04)
SEEDS = (5, 6, 7)
STANDARD = Model("standard", ("model.wiring=standard", "model.num_sublayers=1"))
KRAKEN = Model("kraken 2-way")
VARIANT = Model("kraken 2-way, mean", ("model.conjunction_init=mean",), rate_of="kraken 2-way")
MODELS = (STANDARD, KRAKEN)
# Kraken's best rate lies two steps above the grid.
LOSSES = {
    "standard": {0.01: 4.2, 0.02: 4.0, 0.04: 4.1},
    "kraken": {0.01: 4.5, 0.02: 4.4, 0.04: 4.3, 0.08: 4.2, 0.16: 4.6},
}


def run_protocol(protocol, models, rates, seeds):
    measured = tune_and_repeat(protocol, models, rates, seeds)
    variants = [VARIANT] if KRAKEN in models else []
    return [*measured, *try_options(protocol, variants, measured, seeds)]


class Training:
    """Stands in for ``krakenlm train``: notes what was asked, and writes a made-up history."""

    def __init__(self) -> None:
        self.asked: list[dict[str, str]] = []
        self.fails = False
        self.unlucky: tuple[str, float, int] | None = None

    def __call__(self, arguments, log) -> int:
        assert arguments[0] == "train"
        if self.fails:
            log.write_text("reading\nno space left\n")
            return 2
        asked = dict(word.split("=", 1) for word in arguments[3::2])
        self.asked.append(asked)
        kind = asked.get("model.wiring", "kraken")
        rate, seed = float(asked["training.learning_rate"]), int(asked["training.seed"])
        loss = LOSSES[kind][rate] + 0.05 * seed - 0.01 * ("model.conjunction_init" in asked)
        loss += 0.5 * ((kind, rate, seed) == self.unlucky)
        history = History(
            tokens_per_step=128,
            parameters=1000,
            training=(),
            validation=(Loss(step=4, loss=9.0), Loss(step=8, loss=loss)),
            speed={"seconds": 3.0},
        )
        write_json(Path(asked["output"]) / "history.json", history.to_dict())
        return 0


@pytest.fixture
def training():
    return Training()


@pytest.fixture
def protocol(tmp_path, tiny_data, training):
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny.recipe_text(Path("data"), Path("run")))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "data").symlink_to(tiny_data)
    return Protocol(recipe, tmp_path / "results", tmp_path / "work", 2, training)


def test_the_grid_grows_and_two_seeds_decide_between_the_two_best_rates(protocol, training):
    training.unlucky = ("standard", 0.02, 6)
    measured = run_protocol(protocol, MODELS, RATES, SEEDS)
    grid = [(rate, 5) for rate in RATES]
    expected = {
        "standard": [*grid, (0.02, 6), (0.04, 6), (0.04, 7)],
        "kraken 2-way": [*grid, (0.08, 5), (0.16, 5), (0.08, 6), (0.04, 6), (0.08, 7)],
        "kraken 2-way, mean": [(0.08, 5), (0.08, 6), (0.08, 7)],
    }
    for name, jobs in expected.items():
        found = [(run.learning_rate, run.seed) for run in measured if run.model == name]
        assert sorted(found) == sorted(jobs), name
    assert len(training.asked) == len(measured)


def test_what_is_measured_is_not_trained_again_but_another_setting_is(protocol, training, tmp_path):
    first = run_protocol(protocol, MODELS, RATES, SEEDS)
    count = len(training.asked)
    assert run_protocol(protocol, MODELS, RATES, SEEDS) == first
    assert len(training.asked) == count

    recipe = tmp_path / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("steps = 8", "steps = 9"))
    run_protocol(protocol, MODELS, RATES, SEEDS)
    assert len(training.asked) == 2 * count


def test_tokens_of_other_text_or_another_tokenizer_are_not_taken(protocol):
    text = Path("elsewhere") / "text.txt"
    protocol.prepare([text], f"train:{tiny.VOCABULARY}")
    protocol.prepare([], f"train:{tiny.VOCABULARY}")
    with pytest.raises(KrakenError, match=r"was prepared from text\.txt: give that --text"):
        protocol.prepare([text, Path("more.txt")], f"train:{tiny.VOCABULARY}")
    with pytest.raises(KrakenError, match=r"with --tokenizer train:300: give that"):
        protocol.prepare([text], "train:2048")


def test_a_result_is_kept_when_an_option_is_added_that_it_does_not_use(
    protocol, training, tmp_path
):
    run_protocol(protocol, [STANDARD], [0.02], [5, 6])
    (kept,) = (tmp_path / "results" / "runs").glob("*seed5.json")
    older = json.loads(kept.read_text())
    del older["setting"]["model"]["conjunction_init"]
    write_json(kept, older)
    run_protocol(protocol, [STANDARD], [0.02], [5, 6])
    assert len(training.asked) == 2


def test_a_run_that_fails_ends_the_protocol_with_what_it_said(protocol, training):
    training.fails = True
    with pytest.raises(KrakenError, match=r"-seed5: training ended with 2: no space left"):
        run_protocol(protocol, MODELS, RATES, SEEDS)


def test_differences_are_taken_seed_by_seed_at_each_models_best_rate(protocol):
    measured = run_protocol(protocol, MODELS, RATES, SEEDS)
    found = parity_page.summary(measured, ["text"], "recipe.toml", {})
    assert found["tokens"] == 8 * 128
    standard, kraken, variant = found["models"]
    assert [m["best_learning_rate"] for m in found["models"]] == [0.02, 0.08, 0.08]
    assert [entry["loss"] for entry in kraken["grid"]] == pytest.approx(
        [loss + 0.25 for loss in (4.5, 4.4, 4.3, 4.2, 4.6)]
    )
    assert standard["loss"] == pytest.approx({"mean": 4.3, "least": 4.25, "most": 4.35})
    assert standard["perplexity"] == pytest.approx(math.exp(4.3))
    ratios = [
        math.exp(own) / math.exp(base) for own, base in ((4.45, 4.25), (4.5, 4.3), (4.55, 4.35))
    ]
    over = kraken["perplexity_over_standard_percent"]
    assert over["mean"] == pytest.approx(100 * (statistics.mean(ratios) - 1))
    assert variant["perplexity_over_standard_percent"]["mean"] < over["mean"]


def test_every_model_of_the_protocol_fits_its_recipes():
    paths = sorted((ROOT / "recipes").glob("parity-*.toml"))
    assert len(paths) > 1
    for path in paths:
        for model in (*parity.MODELS, *parity.VARIANTS):
            recipe = parity.read_recipe(path, lambda data: 2048, model.changes)
            assert recipe.training.eval_every > 0


def test_pictures_and_tables_are_drawn_from_the_summary(protocol, tmp_path, monkeypatch):
    measured = run_protocol(protocol, MODELS, RATES, SEEDS)
    found = parity_page.summary(measured, ["text"], "recipe.toml", {})
    parity_page.write_summary(tmp_path, found)
    parity_page.draw(tmp_path)
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(parity_page, "load_summary", lambda: found)
    assert "| kraken 2-way | 16 |" in parity_page.parity_table()
    assert "| standard | 4.450 | 4.250 | 4.350 |  |  |" in parity_page.grid_table()


def test_the_next_learning_rate_lies_one_step_outside_the_grid(protocol):
    runs = tune_and_repeat(protocol, [STANDARD], [0.02, 0.04], [5, 6])
    assert [run.learning_rate for run in runs if run.seed == 5] == [0.02, 0.04, 0.01]
    assert parity_page.next_rate(runs, "standard") is None
