"""A recipe is read strictly: what it does not say right is named, with what would fit."""

import dataclasses
import json
import sys
from pathlib import Path

import pytest

import tiny
from krakenlm.config import ModelConfig, count_parameters, derive, model_config
from krakenlm.errors import KrakenError
from krakenlm.train.recipe import Recipe, Training, model_from_table, read_recipe

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import recipe_heads  # noqa: E402

VOCABULARY = 777
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, lambda data: VOCABULARY, overrides)


def valid(**changes: object) -> str:
    return tiny.recipe_text(Path("data"), Path("run"), **changes)


def test_values_arrive_and_defaults_fill_the_rest(tmp_path):
    recipe = read(tmp_path, valid(steps=5, learning_rate=1, tensorboard=True))
    assert (recipe.data, recipe.output) == (Path("data"), Path("run"))
    assert recipe.model == tiny.model_config(vocab_size=VOCABULARY)
    defaults = Training(steps=5, batch_size=4, learning_rate=1.0)
    changed = {"log_every": 1, "precision": "float32", "device": "cpu", "tensorboard": True}
    assert recipe.training == dataclasses.replace(defaults, **changed)
    assert type(recipe.training.learning_rate) is float


def test_a_byte_order_mark_is_no_part_of_a_recipe(tmp_path):
    assert read(tmp_path, "\ufeff" + valid()) == read(tmp_path, valid())


def test_vocabulary_comes_from_the_data_unless_it_is_given(tmp_path):
    asked = []

    def vocab_size_of(data: Path) -> int:
        asked.append(data)
        return 321

    path = tmp_path / "recipe.toml"
    path.write_text(valid())
    assert read_recipe(path, vocab_size_of).model.vocab_size == 321
    assert asked == [Path("data")]
    path.write_text(valid(model="vocab_size = 500\nhidden_size = 12\nheads_per_sublayer = 3"))
    assert read_recipe(path, vocab_size_of).model.vocab_size == 500


@pytest.mark.parametrize(
    ("old", "new", "essentials"),
    [
        ('data = "data"', 'dat = "data"', ["unknown key 'dat'", "did you mean 'data'?"]),
        ('data = "data"', 'data = "data"\nseed = 1', ["unknown key 'seed'", "known are"]),
        ("steps = 8", "stpes = 8", ["'stpes'", "in [training]", "'steps'"]),
        ("hidden_size", "hiden_size", ["'hiden_size'", "in [model]", "'hidden_size'"]),
        ("[training]", "[model.derive]\nsublayer = 2\n[training]", ["[model.derive]", "sublayers"]),
        ("[training]", "[model.derive]\n[training]", ["sublayers is missing in [model.derive]"]),
        ("[training]", "derive = 2\n[training]", ["[model.derive] is 2", "needs a table"]),
        ("hidden_size", "base = 124\nhidden_size", ["base=124", "a size such as '124M'"]),
        ("hidden_size", "base = '9M'\nhidden_size", ["unknown size '9M'", "gpt2"]),
        ("steps = 8", "steps = '8'", ["steps='8'", "type int"]),
        ("steps = 8", "steps = 8.0", ["steps=8.0", "type int"]),
        ("steps = 8", "steps = true", ["steps=True", "type int"]),
        ("steps = 8", "steps = 8\ncompile = 1", ["compile=1", "type bool"]),
        ("learning_rate = 0.01", "learning_rate = '1'", ["learning_rate='1'", "type float"]),
        ("hidden_size = 16", "hidden_size = '16'", ["hidden_size='16'", "type int"]),
        ("hidden_size = 16", "hidden_size = 15", ["hidden_size=15", "14 or 16"]),
        ("'float32'", "'float64'", ["precision='float64'", "'auto', 'float32', 'bfloat16'"]),
        ('data = "data"', "data = 3", ["data=3", "needs a str"]),
        ("[training]", "[trainig]", ["'trainig'", "'training'"]),
        ("steps = 8\n", "", ["steps is missing in [training]"]),
        ('output = "run"\n', "", ["output is missing"]),
        ("steps = 8", "steps = 0", ["steps=0", "1 or more"]),
        ("steps = 8", "steps = 8\nwarmup_steps = 9", ["warmup_steps=9", "at most steps"]),
        ("steps = 8", "steps = 8\nsave_every = -1", ["save_every=-1", "0 or more"]),
        ("steps = 8", "steps = 8\nbeta2 = 1.0", ["beta2=1.0", "below 1"]),
        ("steps = 8", "steps = 8\nmax_grad_norm = 0", ["max_grad_norm=0", "more than 0"]),
        ("learning_rate = 0.01", "learning_rate = nan", ["learning_rate=nan", "above 0"]),
        ("steps = 8", "steps = 8\nkeep_checkpoints = 0", ["keep_checkpoints=0", "1 or more"]),
        ("steps = 8", "steps = ", ["is not valid TOML", "line "]),
        ("steps = 8", "steps = 8\nsteps = 9", ["is not valid TOML", "overwrite"]),
    ],
)
def test_what_is_wrong_is_named(tmp_path, old, new, essentials):
    text = valid()
    assert old in text
    with pytest.raises(KrakenError) as caught:
        read(tmp_path, text.replace(old, new, 1))
    message = str(caught.value)
    assert str(tmp_path / "recipe.toml") in message
    for essential in essentials:
        assert essential in message
    assert "\n" not in message


def test_tables_that_are_missing_or_no_tables(tmp_path):
    with pytest.raises(KrakenError, match="model is missing"):
        read(tmp_path, 'data = "d"\noutput = "o"')
    with pytest.raises(KrakenError, match="training='x': needs a dict"):
        read(tmp_path, 'data = "d"\noutput = "o"\ntraining = "x"\n[model]\n')


def test_files_that_cannot_be_read(tmp_path):
    def never(data: Path) -> int:
        raise AssertionError(data)

    with pytest.raises(KrakenError, match=r"gone\.toml is missing"):
        read_recipe(tmp_path / "gone.toml", never)
    with pytest.raises(KrakenError, match="is a folder"):
        read_recipe(tmp_path, never)
    (tmp_path / "file").write_bytes(b"data = '\xff'")
    with pytest.raises(KrakenError, match="file is not UTF-8 text at byte 8: convert it"):
        read_recipe(tmp_path / "file", never)
    (tmp_path / "file").write_text("data = 'a'", encoding="utf-16")
    with pytest.raises(KrakenError, match=r"file is UTF-16 text: .* iconv -f UTF-16"):
        read_recipe(tmp_path / "file", never)
    (tmp_path / "file").write_bytes(b"data = ")
    with pytest.raises(KrakenError, match="is not valid TOML"):
        read_recipe(tmp_path / "file", never)
    with pytest.raises(KrakenError, match=r"cannot read .*: Not a directory"):
        read_recipe(tmp_path / "file" / "recipe.toml", never)


def test_errors_of_the_data_folder_name_the_recipe(tmp_path):
    def refuse(data: Path) -> int:
        raise KrakenError(f"{data} does not exist")

    path = tmp_path / "recipe.toml"
    path.write_text(valid())
    with pytest.raises(KrakenError, match=r"recipe\.toml: data does not exist"):
        read_recipe(path, refuse)


def test_base_names_a_size_and_other_keys_change_it():
    assert model_from_table({"base": "gpt2"}) == model_config("124M")
    changed = model_from_table({"base": "355m", "wiring": "ladder", "vocab_size": 99})
    assert changed == model_config("355M", wiring="ladder", vocab_size=99)
    published = model_from_table({"base": "kraken-125M-4way"})
    assert (published.wiring, published.num_sublayers) == ("kraken", 4)


def test_derive_makes_the_kraken_that_matches():
    table = {"base": "gpt2", "derive": {"sublayers": 4}}
    assert model_from_table(table) == derive(model_config("gpt2"), 4)
    options = {"rule": "keep-width", "kv_heads": 1}
    table = {"base": "gpt2", "vocab_size": 1000, "derive": {"sublayers": 2, **options}}
    expected = derive(model_config("gpt2", vocab_size=1000), 2, rule="keep-width", kv_heads=1)
    assert model_from_table(table) == expected
    options = {"wiring": "kraken-shared", "message_parts": 2}
    table = {"base": "gpt2", "derive": {"sublayers": 2, **options}}
    assert model_from_table(table) == derive(model_config("gpt2"), 2, **options)
    with pytest.raises(KrakenError, match="wiring='krakenshared': choose one of 'kraken'"):
        model_from_table({"base": "gpt2", "derive": {"sublayers": 2, "wiring": "krakenshared"}})
    explicit = {"hidden_size": 192, "num_hidden_layers": 3, "heads_per_sublayer": 6}
    standard = ModelConfig(wiring="standard", num_sublayers=1, **explicit)
    assert model_from_table({**explicit, "derive": {"sublayers": 2}}) == derive(standard, 2)
    with pytest.raises(KrakenError, match="rule='keep': choose one of 'published', 'keep-width'"):
        model_from_table({"base": "gpt2", "derive": {"sublayers": 2, "rule": "keep"}})


def test_the_table_given_is_left_as_it_was():
    table = {"base": "gpt2", "wiring": "ladder", "derive": {"sublayers": 2}}
    before = json.loads(json.dumps(table))
    model_from_table(table)
    assert table == before


def test_resolved_recipe_round_trips(tmp_path):
    """What is saved with a run says everything: read back it is the same recipe."""
    text = valid(steps=5, weight_decay=0.2) + "[model.derive]\nsublayers = 2\n"
    text = text.replace("num_sublayers = 2\n", "")
    recipe = read(tmp_path, text)
    saved = json.loads(json.dumps(recipe.to_dict()))
    again = Recipe(
        model=ModelConfig.from_dict(saved["model"]),
        data=Path(saved["data"]),
        output=Path(saved["output"]),
        training=Training(**saved["training"]),
    )
    assert again == recipe
    assert again.to_dict() == recipe.to_dict()
    assert recipe.model.wiring == "kraken"


def test_overrides_stand_in_for_what_the_file_says(tmp_path):
    recipe = read(
        tmp_path,
        valid(),
        *("training.lr=3e-4", "training.steps = 7", "training.compile=true", "output=runs/mine"),
        *("training.precision='bfloat16'", "training.device=cpu", "model.hidden_size=32"),
    )
    settings = recipe.training
    assert (settings.learning_rate, settings.steps, settings.compile) == (3e-4, 7, True)
    assert (settings.precision, settings.device) == ("bfloat16", "cpu")
    assert recipe.output == Path("runs/mine")
    assert recipe.model == tiny.model_config(vocab_size=VOCABULARY, hidden_size=32)
    assert recipe.to_dict()["training"]["learning_rate"] == 3e-4


def test_an_override_may_open_a_table_and_the_last_one_counts(tmp_path):
    text = valid().replace("num_sublayers = 2\n", "")
    recipe = read(tmp_path, text, "model.derive.sublayers=4", "model.derive.sublayers=2")
    assert (recipe.model.wiring, recipe.model.num_sublayers) == ("kraken", 2)


@pytest.mark.parametrize(
    ("override", "essentials"),
    [
        ("training.lrr=1", ["unknown key 'lrr' in [training]"]),
        ("trainig.lr=1", ["unknown key 'trainig'", "did you mean 'training'?"]),
        ("model.derive.n=2", ["[model.derive]"]),
        ("seed=1", ["unknown key 'seed'"]),
        ("training.steps=many", ["steps='many'", "type int"]),
        ("training.steps=8.5", ["steps=8.5", "type int"]),
        ("training.steps=1\nseed=2", ["steps='1", "type int"]),
        ("training.lr", ["--set training.lr", "needs KEY=VALUE"]),
        ("=3", ["needs KEY=VALUE"]),
        ("training.=3", ["needs KEY=VALUE"]),
        ("data.name=3", ["data is no table"]),
        ("training=3", ["training=3", "needs a dict"]),
    ],
)
def test_an_override_that_is_wrong_is_named(tmp_path, override, essentials):
    with pytest.raises(KrakenError) as caught:
        read(tmp_path, valid(), override)
    for essential in essentials:
        assert essential in str(caught.value)
    assert override in str(caught.value)


# Layers, sub-layers, width, heads of a sub-layer, sequences of a step, learning rate: the table in
# design.md, section 2, and its baselines.
PUBLISHED = {
    "kraken-125m-2way": (12, 2, 678, 6, 480, 2.5e-4),
    "kraken-125m-4way": (12, 4, 504, 3, 480, 2.5e-4),
    "kraken-125m-6way": (12, 6, 418, 2, 480, 2.5e-4),
    "kraken-350m-2way": (24, 2, 888, 8, 480, 1.5e-4),
    "kraken-350m-4way": (24, 4, 644, 4, 512, 1.5e-4),
    "kraken-760m-4way": (24, 4, 960, 4, 504, 1.5e-4),
    "gpt2-124m": (12, 1, 768, 12, 480, 2.5e-4),
    "gpt2-355m": (24, 1, 1024, 16, 480, 1.5e-4),
    "gpt2-758m": (24, 1, 1536, 16, 504, 1.5e-4),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_recipes_say_what_was_published(name):
    recipe = recipe_heads.load(ROOT / "recipes" / f"{name}.toml")
    layers, n, d, heads, sequences, learning_rate = PUBLISHED[name]
    model, settings = recipe.model, recipe.training
    shape = (model.num_hidden_layers, model.num_sublayers, model.hidden_size)
    assert (*shape, model.heads_per_sublayer) == (layers, n, d, heads)
    assert model.ffn_dim == (4 if n == 1 else 2) * d
    assert (model.vocab_size, model.max_position_embeddings) == (50304, 1024)
    assert (model.dropout, model.bias, model.tie_word_embeddings) == (0.0, False, True)
    kraken = n * (8 * d * d + 2 * d) * layers + n * d * d
    standard = (12 * d * d + 2 * d) * layers
    expected = (50304 + 1024) * d + (standard if n == 1 else kraken) + d
    assert count_parameters(model) == expected
    assert settings.sequences_per_step == sequences
    assert (settings.steps, settings.learning_rate) == (300_000, learning_rate)
    assert (settings.beta1, settings.beta2, settings.weight_decay) == (0.9, 0.95, 0.1)
    assert (settings.max_grad_norm, settings.warmup_steps) == (1.0, 2000)
    assert (settings.min_learning_rate_ratio, settings.precision) == (0.1, "bfloat16")
    assert settings.sequence_length == 0


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_loads_and_its_head_says_what_it_takes(path):
    recipe = recipe_heads.load(path)
    text = path.read_text(encoding="utf-8")
    assert text == recipe_heads.filled(text, path.stem, recipe), "run scripts/recipe_heads.py"
    assert f"krakenlm train recipes/{path.name}" in text
    assert "prepare --" in text and f" {recipe.data}\n" in text
    assert path.stem == "example" or recipe.output == Path("runs") / path.stem
    assert path.stem == "example" or "# Target: " in text


def test_twins_differ_in_the_model_alone():
    for size in ("cpu", "gpu"):
        kraken, standard = (
            recipe_heads.load(ROOT / "recipes" / f"small-{size}-{kind}.toml")
            for kind in ("kraken-2way", "gpt2")
        )
        assert kraken.training == standard.training and kraken.data == standard.data
        assert kraken.model == derive(standard.model, 2)
    modern, gpt2 = (
        recipe_heads.load(ROOT / "recipes" / f"{name}.toml")
        for name in ("modern-4way", "gpt2-124m")
    )
    difference = count_parameters(modern.model) / count_parameters(gpt2.model) - 1
    assert abs(difference) < 0.01
