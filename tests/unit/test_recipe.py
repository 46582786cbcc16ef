"""A recipe is read strictly: what it does not say right is named, with what would fit."""

import dataclasses
import json
from pathlib import Path

import pytest

import tiny
from krakenlm.config import ModelConfig, derive, model_config
from krakenlm.errors import KrakenError
from krakenlm.train.recipe import Recipe, Training, model_from_table, read_recipe

VOCABULARY = 777


def read(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return read_recipe(path, lambda data: VOCABULARY)


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


def test_the_example_recipe_is_valid():
    example = Path(__file__).parents[2] / "recipes" / "example.toml"
    recipe = read_recipe(example, lambda data: 4096)
    assert (recipe.model.wiring, recipe.model.num_sublayers) == ("kraken", 2)
