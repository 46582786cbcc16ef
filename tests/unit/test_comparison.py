"""``krakenlm runs`` and ``krakenlm compare``, on folders as training writes them."""

import json
import math
from pathlib import Path

import pytest

import tiny
from krakenlm.config import count_parameters
from krakenlm.errors import KrakenError
from krakenlm.files import write_json
from krakenlm.train.comparison import compare_runs, find_runs, load_run
from krakenlm.train.history import History, Loss
from krakenlm.train.recipe import Recipe, Training
from krakenlm.train.run_folder import RunFolder

TOKENS_PER_STEP = 4 * tiny.CONTEXT
SHA256 = {"train": "a", "validation": "b", "tokenizer": "c"}


def losses(by_step: dict[int, float]) -> tuple[Loss, ...]:
    return tuple(Loss(step=step, loss=loss) for step, loss in by_step.items())


def made_up(
    folder: Path,
    validation: dict[int, float],
    *,
    sha256: dict[str, str] = SHA256,
    finished: bool = True,
    by_sublayers: dict[str, dict[int, float]] | None = None,
    **training,
) -> Path:
    """A run's folder with these validation losses by step."""
    settings = {"steps": 30, "batch_size": 4, "learning_rate": 0.1, **training}
    recipe = Recipe(
        model=tiny.model_config(), data=Path("data"), output=folder, training=Training(**settings)
    )
    write_json(folder / "recipe.json", {**recipe.to_dict(), "data_sha256": sha256})
    if validation:
        history = History(
            tokens_per_step=recipe.training.sequences_per_step * tiny.CONTEXT,
            parameters=count_parameters(recipe.model),
            training=tuple(Loss(step=step, loss=9.0 - step / 10) for step in (5, 10)),
            validation=losses(validation),
            validation_by_sublayers={n: losses(each) for n, each in (by_sublayers or {}).items()},
            speed={"tokens_per_second": 1234.5},
        )
        write_json(folder / "history.json", history.to_dict())
    if finished:
        (folder / "model").mkdir()
    return folder


@pytest.fixture
def cli(capfd, own_signals, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    return lambda *arguments: tiny.call(capfd, *arguments)


def test_history_says_again_what_was_written(tmp_path):
    made_up(tmp_path / "run", {10: 5.0, 30: 4.0})
    history = History.load(tmp_path / "run" / "history.json")
    assert history.validation == (Loss(step=10, loss=5.0), Loss(step=30, loss=4.0))
    assert (history.step, history.tokens_per_step) == (30, TOKENS_PER_STEP)
    assert json.loads(json.dumps(history.to_dict())) == json.loads(
        (tmp_path / "run" / "history.json").read_text()
    )
    (tmp_path / "run" / "history.json").write_text('{"tokens_per_step": 1}')
    with pytest.raises(KrakenError, match=r"history\.json .parameters is missing"):
        load_run(tmp_path / "run")


def test_runs_are_found_at_any_depth_with_their_state(tmp_path):
    made_up(tmp_path / "runs" / "b", {10: 5.0})
    made_up(tmp_path / "runs" / "deep" / "a", {10: 5.0}, finished=False)
    made_up(tmp_path / "runs" / "new", {}, finished=False)
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "recipe.json").write_text('{"flour": "500 g"}')
    with RunFolder(tmp_path / "runs" / "new").held():
        found = {run.name: run for run in find_runs(tmp_path / "runs")}
    assert list(found) == ["b", "deep/a", "new"]
    states = [run.state for run in found.values()]
    assert states == ["finished", "interrupted", "running"]
    assert found["new"].history.parameters == count_parameters(tiny.model_config())
    assert (found["new"].history.step, found["new"].steps) == (0, 30)


def test_the_list_shows_steps_tokens_losses_and_parameters(cli, tmp_path):
    made_up(tmp_path / "runs" / "one", {10: 5.0, 20: 4.5})
    outcome = cli("runs")
    assert outcome.code == 0, outcome.err
    (row,) = [line for line in outcome.out.splitlines() if " one " in line]
    cells = [cell.strip() for cell in row.strip("│ ").split("│")]
    parameters = f"{count_parameters(tiny.model_config()):,}"
    assert cells == [
        *("one", "finished", "20/30", f"{20 * TOKENS_PER_STEP:,}"),
        *("8.0000", "4.5000", parameters),
    ]


@pytest.mark.parametrize("folder", ["gone", "empty"])
def test_a_folder_without_runs_is_no_list(cli, tmp_path, folder):
    (tmp_path / "empty").mkdir()
    outcome = cli("runs", folder)
    assert outcome.code == 2 and len(outcome.complaints) == 1
    assert folder in outcome.complaints[0]


def test_runs_are_compared_where_all_were_measured(tmp_path):
    first = made_up(tmp_path / "first", {10: 5.0, 20: 4.0, 30: 3.0})
    # Twice the tokens a step, half the steps: the same tokens, fewer measurements.
    second = made_up(
        tmp_path / "second", {5: 5.5, 10: 4.2}, steps=15, batch_size=4, gradient_accumulation=2
    )
    compared = compare_runs([load_run(first), load_run(second)])
    assert compared.tokens == 20 * TOKENS_PER_STEP
    assert compared.points == (
        (10 * TOKENS_PER_STEP, (5.0, 5.5)),
        (20 * TOKENS_PER_STEP, (4.0, 4.2)),
    )
    one, two = compared.finals
    assert (one.validation_loss, one.perplexity_ratio) == (4.0, 1.0)
    assert two.perplexity == pytest.approx(math.exp(4.2))
    assert two.perplexity_ratio == pytest.approx(math.exp(0.2))


def test_long_curves_are_thinned_and_keep_their_end(tmp_path):
    losses = {step: 9.0 - step / 10 for step in range(1, 31)}
    runs = [load_run(made_up(tmp_path / name, losses)) for name in ("one", "two")]
    compared = compare_runs(runs)
    assert len(compared.points) == 30
    assert len(compared.curves) == 10
    assert compared.curves[-1] == compared.points[-1]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"sha256": {**SHA256, "validation": "x"}}, "the same data"),
        ({"sequence_length": 16}, "the same sequence_length"),
        ({"eval_batches": 3}, "the same validation sequences"),
    ],
)
def test_losses_of_other_tokens_are_not_compared(tmp_path, change, problem):
    runs = [
        load_run(made_up(tmp_path / "one", {10: 5.0})),
        load_run(made_up(tmp_path / "two", {10: 5.0}, **change)),
    ]
    with pytest.raises(KrakenError, match=problem):
        compare_runs(runs)


def test_the_same_tokens_are_compared_whoever_saved_the_tokenizer(tmp_path):
    saved_again = {**SHA256, "tokenizer": "d"}
    runs = [
        load_run(made_up(tmp_path / "one", {10: 5.0})),
        load_run(made_up(tmp_path / "two", {10: 4.0}, sha256=saved_again)),
    ]
    assert compare_runs(runs).points[-1][1] == (5.0, 4.0)


def test_what_cannot_be_compared_is_said(tmp_path):
    one = load_run(made_up(tmp_path / "one", {10: 5.0}))
    with pytest.raises(KrakenError, match="two or more"):
        compare_runs([one])
    with pytest.raises(KrakenError, match="the same number of tokens"):
        compare_runs([one, load_run(made_up(tmp_path / "two", {11: 5.0}))])
    with pytest.raises(KrakenError, match="holds no run"):
        load_run(tmp_path)


def test_compare_prints_writes_and_draws(cli, tmp_path):
    made_up(tmp_path / "a" / "kraken", {10: 5.0, 20: 4.0})
    made_up(tmp_path / "a" / "twin", {10: 5.1, 20: 3.9})
    outcome = cli(
        *("compare", "a/kraken", "a/twin"),
        *("--plot", "losses.png", "--output-json", "compared.json"),
    )
    assert outcome.code == 0, outcome.err
    parameters = f"{count_parameters(tiny.model_config()):,}"
    for shown in ("kraken", "twin", "4.0000", "3.9000", parameters, f"{math.exp(-0.1):.4f}"):
        assert shown in outcome.out
    assert (tmp_path / "losses.png").read_bytes().startswith(b"\x89PNG")
    found = json.loads((tmp_path / "compared.json").read_text())
    assert [run["run"] for run in found["runs"]] == ["kraken", "twin"]
    assert found["runs"][1]["perplexity_ratio"] == pytest.approx(math.exp(-0.1))
    assert found["validation"][0] == {"tokens": 10 * TOKENS_PER_STEP, "losses": [5.0, 5.1]}


def test_compare_says_the_perplexity_with_each_n_that_was_drawn(cli, tmp_path):
    made_up(tmp_path / "plain", {10: 5.0, 20: 4.0})
    each = {"1": {10: 5.2, 20: 4.2}, "2": {10: 5.1, 20: 4.1}}
    made_up(tmp_path / "drawn", each["2"], by_sublayers=each)
    history = History.load(tmp_path / "drawn" / "history.json")
    assert history.validation_by_sublayers["1"] == losses({10: 5.2, 20: 4.2})
    outcome = cli("compare", "plain", "drawn", "--output-json", "found.json")
    assert outcome.code == 0, outcome.err
    expected = (
        f"drawn drew its N; perplexity by N: {math.exp(4.2):.2f} at 1, {math.exp(4.1):.2f} at 2"
    )
    assert expected in outcome.out and "plain drew" not in outcome.out
    runs = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert [list(run["perplexity_by_sublayers"]) for run in runs] == [[], ["1", "2"]]


def test_compare_says_which_runs_were_extended(cli, tmp_path):
    made_up(tmp_path / "plain", {10: 5.0, 30: 4.0})
    made_up(tmp_path / "longer", {10: 4.9, 30: 3.9}, schedule_steps=20)
    outcome = cli("compare", "plain", "longer", "--output-json", "found.json")
    assert outcome.code == 0
    assert "longer was extended from 20 to 30 steps" in outcome.out
    assert "plain was extended" not in outcome.out
    runs = json.loads((tmp_path / "found.json").read_text())["runs"]
    assert [run["scheduled_steps"] for run in runs] == [30, 20]
