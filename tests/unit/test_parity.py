"""The protocol of ``make parity``: what it trains, what it keeps, and how it sums up."""

import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import tiny
from krakenlm.errors import KrakenError
from krakenlm.files import write_json
from krakenlm.train.history import History, Loss

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import choose  # noqa: E402
import parity  # noqa: E402
import parity_long  # noqa: E402
import parity_long_page  # noqa: E402
import parity_models  # noqa: E402
import parity_page  # noqa: E402
from parity import Job, Model, Protocol, try_options, tune_and_repeat  # noqa: E402
from parity_long import Lengths, deeper  # noqa: E402

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


def test_what_is_kept_in_the_repository_is_valid_for_its_recipe():
    """Otherwise a later call would train all of it again."""
    models = {model.name: model for model in (*parity.MODELS, *parity.VARIANTS)}
    files = sorted(parity_page.runs_in(parity_page.RESULTS).glob("*.json"))
    assert files
    for file in files:
        run = parity_page.Measured.load(file)
        job = Job(models[run.model], run.learning_rate, run.seed)
        assert file.stem == job.name
        path = ROOT / "recipes" / "parity-cpu.toml"
        recipe = parity.read_recipe(path, lambda data: 2048, job.overrides).to_dict()
        wanted = {"model": recipe["model"], "training": recipe["training"]}
        kept = parity._with_defaults(run.setting)
        assert {name: kept[name] for name in wanted} == wanted, file.name


# Turns the search for modules into one that finds no others than these libraries bring along.
ONLY = """
import json, pathlib, sys
others = set(json.loads((pathlib.Path(__file__).parent / "others.json").read_text()))
class Without:
    def __init__(self, finder): self.finder = finder
    def __getattr__(self, name): return getattr(self.finder, name)
    def find_spec(self, name, *rest):
        return None if name.partition(".")[0] in others else self.finder.find_spec(name, *rest)
sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
"""


def brought_along(*distributions: str) -> set[str]:
    """The distributions that installing these installs."""
    found: set[str] = set()
    waiting = list(distributions)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name not in found:
            found.add(name)
            try:
                needed = map(Requirement, metadata.requires(name) or [])
            except metadata.PackageNotFoundError:
                continue  # of another system
            waiting += [
                r.name for r in needed if r.marker is None or r.marker.evaluate({"extra": ""})
            ]
    return found


@pytest.mark.slow
def test_the_protocol_runs_where_only_the_libraries_are_that_the_page_names(tmp_path):
    """No datasets, no lm_eval, no network: what a machine with a GPU has."""
    there = brought_along("torch", "transformers", "accelerate", "typer", "matplotlib")
    modules = metadata.packages_distributions()
    others = [
        module
        for module, owners in modules.items()
        if module != "krakenlm" and there.isdisjoint(map(canonicalize_name, owners))
    ]
    assert {"datasets", "lm_eval", "pytest"} & modules.keys() <= {*others} and "torch" not in others
    (tmp_path / "others.json").write_text(json.dumps(others))
    (tmp_path / "sitecustomize.py").write_text(ONLY)
    (tmp_path / "text.txt").write_text(tiny.text(1500))
    model = 'wiring = "standard"\nnum_sublayers = 1\nhidden_size = 16\nnum_hidden_layers = 2\n'
    model += "heads_per_sublayer = 4\nmax_position_embeddings = 32\n"
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(tiny.recipe_text(Path("data"), Path("run"), model=model, eval_every=4))
    script = "import parity, sys; parity.train(parity.option_parser().parse_args(sys.argv[1:]))"
    options = ["--text", tmp_path / "text.txt", "--recipe", recipe, "--tokenizer", "train:300"]
    options += ["--models", "shared, N drawn from 1, 2, 4", "--learning-rates", 0.01, "--seeds", 0]
    options += ["--results", tmp_path / "found", "--work", tmp_path / "work", "--processes", 1]
    path = [tmp_path, ROOT / "scripts", ROOT / "src"]

    def run(*arguments):
        environment = {"PYTHONPATH": os.pathsep.join(map(str, path)), "HF_HUB_OFFLINE": "1"}
        return subprocess.run(
            [sys.executable, "-c", *map(str, arguments)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
        )

    assert "No module named 'pytest'" in run("import pytest").stderr
    ended = run(script, *options)
    assert ended.returncode == 0, ended.stderr
    found = parity_page.load_summary(tmp_path / "found")
    standard, drawn = found["models"]
    assert [entry["sublayers"] for entry in drawn["by_sublayers"]] == [1, 2, 4]
    assert drawn["by_sublayers"][0]["perplexity_alone"] == standard["perplexity"]


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


def test_with_one_rate_and_one_seed_each_model_is_trained_once(protocol, training, tmp_path):
    measured = run_protocol(protocol, [STANDARD], [0.02], [5])
    assert [(run.learning_rate, run.seed) for run in measured] == [(0.02, 5)]
    parity_page.write_summary(tmp_path, parity_page.summary(measured, [], "recipe.toml", {}))
    parity_page.draw(tmp_path)
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")


def test_models_are_chosen_by_name_with_what_they_are_held_to():
    def names(*chosen):
        return [[model.name for model in models] for models in parity.chosen(chosen)]

    everything = [[model.name for model in models] for models in (parity.MODELS, parity.VARIANTS)]
    assert names() == everything
    assert names("lagged") == [["standard", "lagged"], []]
    variant = "kraken 4-way published, sum_scale 0.25"
    assert names(variant) == [["standard", "kraken 4-way published"], [variant]]
    parse = parity.option_parser().parse_args
    assert parse(["--models", "shared 4-way", "lagged"]).models == ["shared 4-way", "lagged"]
    with pytest.raises(SystemExit):
        parse(["--models", "shared 5-way"])


def test_results_of_other_models_on_the_same_tokens_stay_in_the_summary(
    protocol, tmp_path, monkeypatch
):
    standard, kraken = run_protocol(protocol, MODELS, [0.02], [5])[:2]
    monkeypatch.setattr(parity, "MODELS", (KRAKEN, STANDARD))
    results = tmp_path / "results"
    assert parity.with_kept([standard], results) == [kraken, standard]
    other = dataclasses.replace(standard, setting={**standard.setting, "data": {"train": "else"}})
    assert parity.with_kept([other], results) == [other]
    monkeypatch.setattr(parity, "MODELS", (STANDARD,))
    assert parity.with_kept([standard], results) == [standard]


DRAWN = parity_models.drawn((1, 2, 4))


class DrawnTraining:
    """Stands in for ``krakenlm train``: losses by N, which depend on rate and seed."""

    def __call__(self, arguments, log) -> int:
        asked = dict(word.split("=", 1) for word in arguments[3::2])
        rate, seed = float(asked["training.learning_rate"]), int(asked["training.seed"])
        own = int(asked.get("model.derive.sublayers", 1))
        drawn = json.loads(asked.get("training.sublayers", "[]"))

        def losses(n: int) -> tuple[Loss, ...]:
            # N = 4 alone would take the other rate.
            worse = (0.3 if n == 4 else -0.4) * (rate == 0.01) if drawn else 0.1 * (rate == 0.02)
            price = 0.01 * n if drawn else 0.0
            return (Loss(step=8, loss=4 - n / 10 + seed / 10 + price - worse),)

        history = History(
            tokens_per_step=128,
            parameters=1000,
            training=(),
            validation=losses(own),
            validation_by_sublayers={str(n): losses(n) for n in drawn},
            speed={"seconds": 3.0},
        )
        write_json(Path(asked["output"]) / "history.json", history.to_dict())
        return 0


def test_a_drawn_n_is_held_to_models_of_that_n_alone(tmp_path, tiny_data, monkeypatch):
    recipe = tmp_path / "recipe.toml"
    model = 'wiring = "standard"\nnum_sublayers = 1\nhidden_size = 16\nnum_hidden_layers = 2\n'
    model += "heads_per_sublayer = 4\nmax_position_embeddings = 16\n"
    recipe.write_text(tiny.recipe_text(Path("data"), Path("run"), model=model))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "data").symlink_to(tiny_data)
    results, work = tmp_path / "results", tmp_path / "work"
    protocol = Protocol(recipe, results, work, 1, DrawnTraining())
    models = [STANDARD, parity_models.shared(2), parity_models.shared(4), DRAWN]
    measured = protocol.train(
        [Job(model, rate, seed) for model in models for rate in (0.01, 0.02) for seed in (5, 6)], ""
    )
    assert DRAWN.name == "shared, N drawn from 1, 2, 4"
    assert parity_page.rates_by_loss(measured, DRAWN.name) == [0.02, 0.01]
    found = parity_page.summary(measured, ["text"], "recipe.toml", {})
    by_sublayers = found["models"][-1]["by_sublayers"]
    assert [entry["sublayers"] for entry in by_sublayers] == [1, 2, 4]
    assert [entry["alone"] for entry in by_sublayers] == [
        "standard",
        "shared 2-way",
        "shared 4-way",
    ]
    for entry in by_sublayers:
        expected = 100 * math.expm1(0.01 * entry["sublayers"] + 0.1)
        assert entry["perplexity_over_alone_percent"]["most"] == pytest.approx(expected)
        assert entry["perplexity_over_alone_percent"]["least"] == pytest.approx(expected)
    monkeypatch.setattr(parity_page, "load_summary", lambda: found)
    table = parity_page.degrees_table()
    assert f"| 2 | {math.exp(4.25):.1f} | {math.exp(4.37):.1f} | +12.7 % |" in table
    # A model alone that is not there yet takes its row with it, and without any there is no table.
    fewer = [run for run in measured if run.model != "shared 2-way"]
    found["models"] = parity_page.summary(fewer, ["text"], "recipe.toml", {})["models"]
    assert "| 2 |" not in parity_page.degrees_table() and "| 4 |" in parity_page.degrees_table()
    found["models"] = found["models"][:1]
    assert "still to come" in parity_page.degrees_table()


def test_without_runs_on_a_gpu_their_table_says_so(tmp_path, monkeypatch, protocol):
    monkeypatch.setattr(parity_page, "GPU_RESULTS", tmp_path)
    assert "still to come" in parity_page.gpu_table()
    measured = run_protocol(protocol, MODELS, RATES, SEEDS)
    parity_page.write_summary(tmp_path, parity_page.summary(measured, [], "recipe.toml", {}))
    assert "| kraken 2-way | 16 |" in parity_page.gpu_table()


def test_every_model_of_the_protocol_fits_its_recipes():
    short = (*parity.MODELS, *parity.VARIANTS)
    recipes = {
        "parity-cpu": short,
        "parity-gpu": short,
        "parity-long": [*parity_long.MODELS, *(deeper(m, 16) for m in parity_long.MODELS)],
    }
    assert recipes.keys() == {path.stem for path in (ROOT / "recipes").glob("parity-*.toml")}
    for name, models in recipes.items():
        for model in models:
            path = ROOT / "recipes" / f"{name}.toml"
            recipe = parity.read_recipe(path, lambda data: 2048, model.changes)
            assert recipe.training.eval_every > 0


def test_pictures_and_tables_are_drawn_from_the_summary(protocol, tmp_path, monkeypatch):
    measured = run_protocol(protocol, MODELS, RATES, SEEDS)
    found = parity_page.summary(measured, ["text"], "recipe.toml", {})
    parity_page.write_summary(tmp_path, found)
    parity_page.draw(tmp_path)
    assert (tmp_path / "parity.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(parity_page, "load_summary", lambda results: found)
    assert "| kraken 2-way | 16 |" in parity_page.parity_table()
    monkeypatch.setattr(parity_page, "load_summary", lambda: found)
    assert "| standard | 4.450 | 4.250 | 4.350 |  |  |" in parity_page.grid_table()


def test_the_next_learning_rate_lies_one_step_outside_the_grid(protocol):
    runs = tune_and_repeat(protocol, [STANDARD], [0.02, 0.04], [5, 6])
    assert [run.learning_rate for run in runs if run.seed == 5] == [0.02, 0.04, 0.01]
    assert parity_page.next_rate(runs, "standard") is None


# The long protocol


# The best of them awaits its sums.
OVER = {"standard": 0.0, "ladder": 0.1, "shared": -0.1, "lagged": 0.2, "parallel": -0.2}


class LongTraining:
    """Stands in for ``krakenlm train``: losses by wiring, which fall as steps and layers grow."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, int, int, int, float]] = []

    def __call__(self, arguments, log) -> int:
        asked = dict(word.split("=", 1) for word in arguments[3::2])
        wiring = asked.get("model.wiring", "standard")
        layers = int(asked.get("model.num_hidden_layers", 2))
        steps, seed = int(asked["training.steps"]), int(asked["training.seed"])
        rate = float(asked["training.learning_rate"])
        assert int(asked["training.warmup_steps"]) == steps // 10
        self.asked.append((wiring, layers, steps, seed, rate))

        def loss(step: int) -> Loss:
            # A tenth of the length does not show what is best for the standard model.
            likes = 0.01 if (wiring, steps) == ("standard", 10) else 0.02
            worse = (rate != likes) * 0.5
            return Loss(step=step, loss=4 - step / 100 - layers / 10 + OVER[wiring] + worse)

        history = History(
            tokens_per_step=128,
            parameters=1000 * layers,
            training=(),
            validation=(loss(steps // 2), loss(steps)),
            speed={"seconds": 3.0},
        )
        write_json(Path(asked["output"]) / "history.json", history.to_dict())
        return 0


LONG_MODELS = [
    Model("standard"),
    *(Model(name, (f"model.wiring={name}",)) for name in OVER if name != "standard"),
]


@pytest.fixture
def long_run(tmp_path, tiny_data):
    recipe = tmp_path / "recipe.toml"
    model = 'wiring = "standard"\nnum_sublayers = 1\nhidden_size = 16\nnum_hidden_layers = 2\n'
    model += "heads_per_sublayer = 2\nmax_position_embeddings = 16\n"
    recipe.write_text(tiny.recipe_text(Path("data"), Path("run"), model=model))
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "data").symlink_to(tiny_data)
    training = LongTraining()
    protocol = Protocol(recipe, tmp_path / "results", tmp_path / "work", 2, training)
    kept: list[int] = []
    measured = parity_long.run_all(
        protocol,
        LONG_MODELS,
        [0.01, 0.02],
        [3, 4, 5],
        Lengths(full=40, tuning=10, double=80),
        4,
        lambda found: kept.append(len(found)),
    )
    return training, measured, kept


def test_the_long_protocol_trains_the_best_further(long_run):
    training, measured, kept = long_run
    wirings = [model.name for model in LONG_MODELS]
    best = ("standard", "shared", "ladder")
    expected = [
        *((wiring, 2, 10, 3, rate) for wiring in wirings for rate in (0.01, 0.02)),
        *((wiring, 2, 40, 3, 0.02) for wiring in wirings),
        ("standard", 2, 40, 3, 0.01),
        *((wiring, 2, 40, seed, 0.02) for seed in (4, 5) for wiring in best),
        *((wiring, 2, 80, 3, 0.02) for wiring in best),
        *((wiring, 4, 40, 3, 0.02) for wiring in best),
    ]
    assert sorted(training.asked) == sorted(expected)
    assert len(measured) == len(expected)
    assert kept == [16, 22, 25, 28]


def test_each_long_run_is_held_to_the_standard_model_of_its_length_seed_and_depth(long_run):
    _, measured, _ = long_run
    found = parity_long_page.summary(measured, 40, ["text"], {})
    entries = {(m["name"], m["tokens"]): m for m in found["models"]}
    assert len(entries) == 11 and len(found["tuning"]) == 10
    (other,) = found["in_full_at_other_rates"]
    assert other == {"name": "standard", "learning_rate": 0.01, "loss": pytest.approx(3.9)}
    assert entries["standard", 40 * 128]["learning_rate"] == 0.02
    shared = entries["shared", 40 * 128]
    assert [seed["seed"] for seed in shared["seeds"]] == [3, 4, 5]
    assert shared["tokens_per_parameter"] == 40 * 128 / 2000
    for key, model in entries.items():
        for seed in model["seeds"]:
            over = OVER[key[0].partition(",")[0]]
            curve = seed["perplexity_over_standard_percent"]
            percent = [point["percent"] for point in curve]
            assert percent == pytest.approx(2 * [100 * math.expm1(over)])
            assert [point["tokens"] for point in curve] == [key[1] // 2, key[1]]


def test_runs_of_earlier_calls_at_other_rates_count_too(long_run, tmp_path):
    _, measured, _ = long_run
    results = tmp_path / "results"
    assert parity_long._kept_of_others(measured, results) == []
    (run,) = [run for run in measured if (run.model, run.history.step) == ("lagged", 40)]
    at_best = dataclasses.replace(run, learning_rate=0.08)
    of_none = dataclasses.replace(run, model="of none")
    for number, each in enumerate((at_best, of_none)):
        write_json(results / "runs" / f"more-{number}.json", dataclasses.asdict(each))
    assert parity_long._kept_of_others(measured, results) == [at_best]


def test_the_long_protocol_s_table_and_picture_are_drawn(long_run, tmp_path, monkeypatch):
    _, measured, _ = long_run
    found = parity_long_page.summary(measured, 40, ["text"], {})
    parity_long_page.write_summary(tmp_path, found)
    parity_long_page.draw(tmp_path)
    assert (tmp_path / "parity-long.png").read_bytes().startswith(b"\x89PNG")
    monkeypatch.setattr(parity_long_page, "load_summary", lambda: found)
    table = parity_long_page.long_table()
    assert "| shared | 2 | 0.0M | 2.6 | 0.02 | 3 | 3.300 | 27.11 | -9.5 % |" in table
    assert "| shared | 4 |" in table
    assert "| ladder | 4.300 | 3.800 |" in parity_long_page.tuning_table()
    assert parity_long_page.other_rates_table().splitlines()[2:] == [
        "| standard | 0.02 | 3.400 |",
        "| standard | 0.01 | 3.900 |",
    ]


# --- quality beside latency ----------------------------------------------------------------------


@pytest.mark.parametrize("link", choose.LINKS)
def test_every_model_that_is_timed_is_one_that_the_protocol_trains(link):
    known = {model.name for model in (*parity_models.MODELS, *parity_models.VARIANTS)}
    found = choose.choices(link)
    assert {choice.name for choice in found} <= known
    assert len({choice.name for choice in found}) == len(found)
    standard = next(choice for choice in found if choice.name == "standard")
    assert standard.quality["mean"] == 0.0 and standard.speedup.median == 1.0
