"""One checkpoint for any N: a model computes with each N, and training draws one for each step."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
from krakenlm.config import ModelConfig, laid_out
from krakenlm.data.tokens import open_split
from krakenlm.errors import KrakenError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.integrations.hf_trainer import checkpoint_activations
from krakenlm.model.decoder import Decoder
from krakenlm.train import trainer as trainer_module
from krakenlm.train.callbacks import Display
from krakenlm.train.degrees import Degrees
from krakenlm.train.meter import Meter
from krakenlm.train.recipe import Recipe, Training, read_recipe
from krakenlm.train.run_folder import RunFolder
from krakenlm.train.trainer import train
from reference import in_branches, reference_logits

FINEST = 12
NUMBERS = (1, 2, 3, 4, 6, 12)
FIELDS = {
    "plain": {},
    "every option": {
        "kv_heads_per_sublayer": 12, "head_dim": 2, "position": "rope", "norm": "rmsnorm",
        "activation": "swiglu", "tie_word_embeddings": False,
    },
}  # fmt: skip
IDS = torch.tensor([[1, 2, 10, 0, 3], [4, 4, 7, 9, 5]])


def of_one_branch(**changes) -> ModelConfig:
    values = {"num_sublayers": 1, "hidden_size": 12, "num_hidden_layers": 3, "ffn_dim": 36}
    more = {"heads_per_sublayer": 24, "bias": True, "head_dim": 1, "vocab_size": 11}
    return ModelConfig(wiring="shared", **{**values, **more, **changes})


def as_branches(
    whole: ModelConfig, leaves: dict[str, torch.Tensor], branches: int, computed: int = 0
) -> KrakenForCausalLM:
    """A model in training with these weights, laid out for so many branches.

    It computes with ``computed`` of them, or with all.
    """
    config = KrakenConfig.from_model_config(laid_out(whole, branches))
    model = KrakenForCausalLM(config).double().train()
    state = {name: t.detach() for name, t in in_branches(whole, leaves, branches).items()}
    model.load_state_dict(state, strict=False)  # of a tied head there is the embedding
    model.model.degree = computed or branches
    return model


def weights_of(whole: ModelConfig) -> dict[str, torch.Tensor]:
    """Leaves in the layout of one branch, which all layouts are cut from."""
    torch.manual_seed(0)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(whole)).double()
    return {
        name: torch.randn_like(parameter).mul_(0.5).requires_grad_()
        for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize("recomputes", [False, True], ids=["keeps", "recomputes"])
@pytest.mark.parametrize("n", NUMBERS)
@pytest.mark.parametrize("fields", FIELDS)
def test_one_set_of_weights_computes_with_any_n_what_a_model_of_that_n_does(fields, n, recomputes):
    """Forward and backward against the plain reference, with the weights laid out anew."""
    whole = of_one_branch(**FIELDS[fields])
    leaves = weights_of(whole)
    model = as_branches(whole, leaves, FINEST, computed=n)
    if recomputes:
        checkpoint_activations(model)

    logits = model(IDS).logits
    expected = reference_logits(laid_out(whole, n), in_branches(whole, leaves, n), IDS)
    torch.testing.assert_close(logits, expected, rtol=1e-9, atol=1e-9)

    direction = torch.randn_like(logits)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = torch.autograd.grad((logits * direction).sum(), parameters)
    cut = in_branches(whole, leaves, FINEST)
    found = torch.autograd.grad([cut[name] for name in names], list(leaves.values()), gradients)
    wanted = torch.autograd.grad((expected * direction).sum(), list(leaves.values()))
    for name, *pair in zip(leaves, found, wanted, strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("n", [1, 4])
def test_dropout_falls_on_the_same_numbers_for_any_layout(n):
    whole = of_one_branch(dropout=0.3)
    leaves = weights_of(whole)
    found = []
    for model in (as_branches(whole, leaves, FINEST, computed=n), as_branches(whole, leaves, n)):
        torch.manual_seed(1)
        found.append(model(IDS).logits)
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-9)


def test_no_weight_is_copied_for_another_n(monkeypatch):
    """The product of several branches that read one stream takes their weights as they lie."""
    whole = of_one_branch()
    model = as_branches(whole, weights_of(whole), FINEST, computed=4)
    places = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    multiplied = []
    product = torch.baddbmm

    def noted(bias, x, weight):
        multiplied.append(weight)
        return product(bias, x, weight)

    monkeypatch.setattr(torch, "baddbmm", noted)
    model(IDS)
    # Up in each layer; queries, keys and values in each but the first, which reads one stream.
    assert [w.shape[0] for w in multiplied].count(4) == 3 + 2
    assert {w.untyped_storage().data_ptr() for w in multiplied} <= places


def test_a_compiled_model_computes_with_the_n_that_is_set():
    torch.compiler.reset()
    whole = of_one_branch(num_hidden_layers=2)
    model = as_branches(whole, weights_of(whole), FINEST)
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    found = {}
    for n in (12, 2, 1, 2):
        model.model.degree = n
        found[n] = compiled(IDS).logits
        torch.testing.assert_close(found[n], model(IDS).logits)
    assert not torch.allclose(found[1], found[2])


# Training


SHARED = ModelConfig(
    wiring="shared", num_sublayers=4, hidden_size=16, num_hidden_layers=2, heads_per_sublayer=1,
    ffn_dim=16, vocab_size=tiny.VOCABULARY, max_position_embeddings=tiny.CONTEXT,
)  # fmt: skip


@pytest.fixture
def recipe(tiny_data: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(model=SHARED, output="run", **training) -> Recipe:
        settings = {
            "steps": 8, "batch_size": 4, "learning_rate": 1e-2, "log_every": 1, "seed": 3,
            "precision": "float32", "device": "cpu", "sublayers": [1, 2, 4], **training,
        }  # fmt: skip
        return Recipe(
            model=model, data=tiny_data, output=tmp_path / output, training=Training(**settings)
        )

    return make


@pytest.fixture
def computed(monkeypatch) -> list[tuple[bool, int]]:
    """Of each forward pass whether it is one of training, and its N."""
    passes = []
    steps = Decoder.steps

    def noted(self, *arguments, **keywords):
        passes.append((self.training, self.degree))
        return steps(self, *arguments, **keywords)

    monkeypatch.setattr(Decoder, "steps", noted)
    return passes


def history(run: RunFolder) -> dict:
    found = json.loads(run.history.read_text())
    del found["speed"]
    return found


def test_what_is_drawn_follows_from_seed_and_step():
    degrees = Degrees((1, 2, 4), own=4, seed=3)
    drawn = [degrees.at(step) for step in range(3000)]
    assert drawn == [Degrees((1, 2, 4), own=4, seed=3).at(step) for step in range(3000)]
    assert drawn[:6] == [1, 4, 4, 1, 2, 1]  # on any machine, with any Python
    assert all(abs(count - 1000) < 100 for count in Counter(drawn).values())
    assert drawn != [Degrees((1, 2, 4), own=4, seed=4).at(step) for step in range(3000)]
    assert Degrees((2,), own=2, seed=3).others == ()


def test_the_first_steps_may_learn_with_the_models_own_n(recipe, computed):
    train(recipe(own_sublayers_steps=5))
    later = [Degrees((1, 2, 4), own=4, seed=3).at(step) for step in range(5, 8)]
    assert [n for training, n in computed if training] == [4] * 5 + later
    assert {*later} != {4}
    with pytest.raises(KrakenError, match="own_sublayers_steps=8: needs less than steps"):
        recipe(own_sublayers_steps=8)


def test_each_step_learns_with_its_n_in_all_its_passes(recipe, computed):
    made = recipe(gradient_accumulation=2)
    train(made)
    degrees = Degrees.of(made)
    assert [n for training, n in computed if training] == [
        degrees.at(step) for step in range(8) for _ in range(2)
    ]
    assert len({degrees.at(step) for step in range(8)}) == 3


def test_the_validation_loss_is_taken_with_each_n(recipe, tiny_data):
    run = train(recipe(eval_every=3, eval_batches=100))
    entries = history(run)
    of_each = entries["validation_by_sublayers"]
    assert list(of_each) == ["1", "2", "4"]
    assert of_each["4"] == entries["validation"]
    assert [[e["step"] for e in losses] for losses in of_each.values()] == [[3, 6, 8]] * 3
    tokens = torch.from_numpy(open_split(tiny_data, "validation").tokens.astype("int64"))
    windows = tokens[: len(tokens) // tiny.CONTEXT * tiny.CONTEXT].view(-1, tiny.CONTEXT)
    stored = AutoConfig.from_pretrained(run.model)
    assert stored.to_model_config() == SHARED
    for n, losses in of_each.items():
        config = KrakenConfig.from_model_config(laid_out(SHARED, int(n)))
        model = AutoModelForCausalLM.from_pretrained(run.model, config=config)
        with torch.no_grad():
            found = model(windows, labels=windows).loss.item()
        assert losses[-1]["loss"] == pytest.approx(found, rel=1e-5)
    assert len({losses[-1]["loss"] for losses in of_each.values()}) == 3


def test_steps_in_bfloat16_that_recompute_activations_learn_nearly_the_same(recipe):
    exact = history(train(recipe(output="exact")))
    run = train(recipe(precision="bfloat16", gradient_checkpointing=True))
    for part in ("training", "validation"):
        wanted = [entry["loss"] for entry in exact[part]]
        assert [e["loss"] for e in history(run)[part]] == pytest.approx(wanted, rel=2e-3)


def test_without_numbers_to_draw_from_nothing_changes(recipe, computed):
    entries = history(train(recipe(sublayers=None)))
    assert {n for _, n in computed} == {4}
    assert entries["validation_by_sublayers"] == {}


def test_an_interrupted_run_draws_what_it_would_have_drawn(recipe, monkeypatch):
    settings = {"steps": 9, "save_every": 3, "eval_every": 4, "log_every": 2}
    whole = train(recipe(output="whole", **settings))
    step = trainer_module.LoopTrainer.training_step

    def stop(self, *arguments, **keywords):
        if self.state.global_step == 7:
            raise KeyboardInterrupt
        return step(self, *arguments, **keywords)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(trainer_module.LoopTrainer, "training_step", stop)
        train(recipe(**settings))
    again = train(recipe(**settings))
    assert history(again) == history(whole)
    files = [(run.model / "model.safetensors").read_bytes() for run in (whole, again)]
    assert files[0] == files[1]


def test_an_extended_run_keeps_the_losses_with_each_n(recipe):
    short = train(recipe(steps=4, save_every=2))
    before = history(short)["validation_by_sublayers"]
    after = history(train(recipe(steps=6, save_every=2), extend=True))
    for n, losses in after["validation_by_sublayers"].items():
        assert losses[:1] == before[n] and [e["step"] for e in losses] == [4, 6]


def test_numbers_that_do_not_divide_each_other_are_drawn_and_the_model_keeps_its_own(recipe):
    model = SHARED.replace(
        num_sublayers=2, hidden_size=12, heads_per_sublayer=3, kv_heads_per_sublayer=3, head_dim=4,
        ffn_dim=24,
    )  # fmt: skip
    made = recipe(model, sublayers=[2, 3])
    assert made.trained_model.num_sublayers == 6
    run = train(made)
    loaded = AutoModelForCausalLM.from_pretrained(run.model)
    assert loaded.config.to_model_config() == model
    assert loaded.config.eos_token_id == 0 and loaded.generation_config.eos_token_id in (0, [0])
    assert set(history(run)["validation_by_sublayers"]) == {"2", "3"}


def test_training_says_what_is_drawn_and_which_loss_is_shown(recipe, capfd):
    train(recipe(steps=1))
    said = " ".join(capfd.readouterr().err.split())
    assert "shared model" in said and "each step draws its N from 1, 2, 4" in said
    assert "after step" not in said and "shows that of 4" in said
    train(recipe(steps=2, own_sublayers_steps=1, output="later"))
    said = " ".join(capfd.readouterr().err.split())
    assert "after step 1 each step draws its N from 1, 2, 4" in said


def test_beside_the_progress_bar_stands_the_loss_with_each_n(capfd):
    state = type("State", (), {"max_steps": 9, "global_step": 2})
    display = Display("shared", Meter(1, 1.0, 9, None), Degrees((1, 4), own=4, seed=0))
    display.on_train_begin(None, state, None)
    display.on_log(None, state, None, {"loss": 5.0})
    display.on_log(None, state, None, {"eval_sublayers_1_loss": 4.5})
    display.on_log(None, state, None, {"eval_loss": 4.25})
    display.on_train_end(None, state, None)
    said = capfd.readouterr().err.splitlines()
    assert [line for line in said if "step 2" in line] == [
        "step 2: validation loss 4.500 (N=1), 4.250 (N=4)"
    ]


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        (["training.sublayers=[]"], "sublayers=[]: needs numbers of 1 or more"),
        (["training.sublayers=[0, 4]"], "sublayers=[0, 4]: needs numbers of 1 or more"),
        (["training.sublayers=[2, 4, 2]"], "sublayers=[2, 4, 2]: needs each number once"),
        (["training.own_sublayers_steps=8"], "needs 0 unless sublayers are drawn from"),
        (["training.own_sublayers_steps=-1"], "own_sublayers_steps=-1: needs 0 or more"),
        (["training.sublayers=4"], "sublayers=4: needs a value of type list"),
        (["training.sublayers=['4']"], "sublayers[0]='4': needs a value of type int"),
        (["training.sublayers=[3, 4]"], "sublayers=[3, 4]: 3 does not divide 4 query heads: use"),
        (["training.sublayers=[1, 2]"], "num_sublayers=4, which a saved model computes with, is"),
        (["training.sublayers=[1, 4]", "model.wiring=lagged"], "lagged model is the same function"),
        (
            ["training.sublayers=[1, 4]", "model.wiring=kraken"],
            "4 sub-layers with norms of their own",
        ),
    ],
)
def test_numbers_that_cannot_be_drawn_are_refused_in_one_line(tmp_path, overrides, problem):
    model = "wiring = 'shared'\nnum_sublayers = 4\nhidden_size = 16\nheads_per_sublayer = 1\n"
    path = tmp_path / "recipe.toml"
    path.write_text(tiny.recipe_text(Path("data"), Path("run"), model=model))
    assert read_recipe(path, lambda _: 300, ["training.sublayers=[1, 2, 4]"]).training.sublayers
    with pytest.raises(KrakenError) as caught:
        read_recipe(path, lambda _: 300, overrides)
    message = str(caught.value)
    assert problem in message and "\n" not in message
    assert all(override in message for override in overrides)
