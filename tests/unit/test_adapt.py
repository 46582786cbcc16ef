"""A trained model's layers become late, and learn to be what they were."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import tiny
from krakenlm.adapt.memory import bytes_needed
from krakenlm.adapt.plan import Plan
from krakenlm.adapt.probe import Probe, Sample
from krakenlm.adapt.sensitivity import Late
from krakenlm.config import ModelConfig, count_parameters, format_layers
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.errors import KrakenError
from krakenlm.eval.perplexity import perplexity
from krakenlm.files import write_json
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.integrations.rewiring import rewire
from krakenlm.model.checkpoint import read_config, read_eos_token_ids
from krakenlm.model.decoder import Layer
from krakenlm.train import trainer as trainer_module
from krakenlm.train.models import start_model, teacher_of
from krakenlm.train.recipe import Adaptation, Recipe, Training
from krakenlm.train.teacher import Streams, layer_loss, logits_loss
from krakenlm.train.trainer import train

LAYERS = 4
STANDARD = ModelConfig(
    wiring="standard", num_sublayers=1, hidden_size=16, num_hidden_layers=LAYERS,
    heads_per_sublayer=4, kv_heads_per_sublayer=2, ffn_dim=24, vocab_size=tiny.VOCABULARY,
    max_position_embeddings=tiny.CONTEXT, position="rope", norm="rmsnorm", activation="swiglu",
)  # fmt: skip
IDS = torch.tensor([[1, 2, 10, 0, 3, 7], [4, 4, 7, 9, 5, 8]])


@pytest.fixture(scope="module")
def original(tmp_path_factory, tiny_data) -> Path:
    """A model with weights large enough that layers matter."""
    folder = tmp_path_factory.mktemp("original") / "model"
    torch.manual_seed(0)
    config = KrakenConfig.from_model_config(STANDARD.replace(initializer_range=0.3))
    KrakenForCausalLM(config).save_pretrained(folder)
    load_tokenizer(tiny_data).save_pretrained(folder)
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    return folder


def recipe(
    original: Path, data: Path, output: Path, *, late="2-3", adapt=None, **training
) -> Recipe:
    settings = {
        "steps": 6, "batch_size": 2, "learning_rate": 1e-3, "precision": "float32",
        "device": "cpu", "log_every": 1, "save_every": 2, **training,
    }  # fmt: skip
    model = STANDARD.replace(
        wiring="shared", num_sublayers=2, heads_per_sublayer=2, kv_heads_per_sublayer=1,
        ffn_dim=12, late_layers=late, initializer_range=0.3,
    )  # fmt: skip
    return Recipe(
        model=model,
        data=data,
        output=output,
        training=Training(**settings),
        adapt=Adaptation(teacher=original, **(adapt or {})),
    )


def with_weights(config: ModelConfig, seed: int = 0) -> KrakenForCausalLM:
    torch.manual_seed(seed)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


# What is learned


@pytest.mark.parametrize("function", tiny.FUNCTIONS.values(), ids=tiny.FUNCTIONS)
def test_the_last_stream_is_what_the_final_norm_reads(function):
    config = tiny.model_config(**function)
    if config.traits.own_streams:
        pytest.skip("a Kraken has no stream that all its branches share")
    model = with_weights(config)
    read = []
    model.model.norm.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][0]))
    with Streams().watching(model.model) as streams:
        model(IDS)
    assert len(streams.behind) == config.num_hidden_layers
    torch.testing.assert_close(
        streams.behind[config.num_hidden_layers - 1], read[0], rtol=1e-9, atol=1e-9
    )
    model(IDS + 1)  # nobody watches any more
    torch.testing.assert_close(
        streams.behind[config.num_hidden_layers - 1], read[0], rtol=1e-9, atol=1e-9
    )


def test_streams_of_a_standard_model_are_its_layers_outputs():
    model = with_weights(STANDARD)
    with Streams().watching(model.model) as streams:
        model(IDS)
    for layers in range(1, LAYERS):
        shorter = with_weights(STANDARD.replace(num_hidden_layers=layers))
        shorter.load_state_dict(model.state_dict(), strict=False)
        read = []
        shorter.model.norm.register_forward_pre_hook(
            lambda _, inputs, read=read: read.append(inputs[0][0])
        )
        shorter(IDS)
        torch.testing.assert_close(streams.behind[layers - 1], read[0], rtol=1e-9, atol=1e-9)


def test_the_divergence_and_its_gradient_are_those_of_the_formula():
    torch.manual_seed(0)
    found = torch.randn(2, 300, 7, dtype=torch.float64, requires_grad=True)
    wanted = torch.randn(2, 300, 7, dtype=torch.float64)
    p, log_q = wanted.softmax(-1), found.log_softmax(-1)
    formula = (p * (p.log() - log_q)).sum() / 600
    loss = logits_loss(found, wanted)
    torch.testing.assert_close(loss.double(), formula, rtol=1e-5, atol=1e-7)
    expected = torch.autograd.grad(formula, found)[0]
    torch.testing.assert_close(
        torch.autograd.grad(3 * loss, found)[0], 3 * expected, rtol=1e-4, atol=1e-8
    )


def test_the_layers_loss_holds_each_tokens_error_to_its_own_length():
    wanted = [torch.tensor([[[3.0, 4.0], [300.0, 400.0]]])] * 2
    found = [wanted[0], wanted[1] + torch.tensor([[[0.5, 0.0], [0.0, 100.0]]])]
    found, wanted = dict(enumerate(found)), dict(enumerate(wanted))
    assert layer_loss(found, wanted, [0]) == 0
    assert layer_loss(found, wanted, [1]) == pytest.approx((0.01 + 0.04) / 2)
    assert layer_loss(found, wanted, [0, 1]) == pytest.approx(0.025 / 2)


def test_layers_before_the_first_late_one_and_the_vocabulary_stay_the_teachers(original, tiny_data):
    asked = recipe(original, tiny_data, Path("nowhere"))
    from krakenlm.data.manifest import Manifest

    model = start_model(asked, Manifest.load(tiny_data))
    teacher = teacher_of(model)._model
    shared = {p.data_ptr() for p in model.parameters()} & {
        p.data_ptr() for p in teacher.parameters()
    }
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert {name.split(".")[2] for name in trained if ".layers." in name} == {"2", "3"}
    assert {name for name in trained if ".layers." not in name} == {"model.norm.weight"}
    for name, parameter in model.named_parameters():
        assert (parameter.data_ptr() in shared) == (name not in trained), name
    assert not any(p.requires_grad for p in teacher.parameters())
    with torch.no_grad():
        loaded = KrakenForCausalLM.from_pretrained(original)
        torch.testing.assert_close(teacher(IDS).logits, loaded(IDS).logits, rtol=1e-5, atol=1e-5)
    everything = recipe(original, tiny_data, Path("nowhere"), adapt={"train_embeddings": True})
    model = start_model(everything, Manifest.load(tiny_data))
    assert model.model.embed_tokens.weight.requires_grad
    teacher = teacher_of(model)._model
    assert (
        teacher.model.embed_tokens.weight.data_ptr() != model.model.embed_tokens.weight.data_ptr()
    )


@pytest.mark.parametrize(
    ("adapt", "name"),
    [({"layerwise_steps": 60}, "layers"), ({}, "logits"), ({"layerwise_weight": 1.0}, "both")],
)
def test_training_brings_the_model_back_to_its_teacher(adapt, name, original, tiny_data, tmp_path):
    run = train(
        recipe(
            original,
            tiny_data,
            tmp_path / "run",
            adapt=adapt,
            steps=60,
            save_every=0,
            learning_rate=5e-3,
        )
    )
    losses = [entry.loss for entry in trainer_module.History.load(run.history).training]
    assert sum(losses[-5:]) < 0.6 * sum(losses[:5]), name
    assert read_config(run.model).late_layers == "2-3"
    before, after = (
        load_file(original / "model.safetensors"),
        load_file(run.model / "model.safetensors"),
    )
    kept, learned = (
        "model.layers.1.attention.output.weight",
        "model.layers.3.attention.output.weight",
    )
    assert torch.equal(torch.cat([*after[kept]], dim=1), before[kept][0])
    assert not torch.equal(torch.cat([*after[learned]], dim=1), before[learned][0])
    assert (run.model / "chat_template.jinja").is_file()


@pytest.mark.parametrize("position", ["rope", "learned"])
def test_layers_that_stay_are_computed_once(position, original, tiny_data, tmp_path, monkeypatch):
    """What is learned is what it would be if the model ran them itself."""
    folder = Path(shutil.copytree(original, tmp_path / "original"))
    torch.manual_seed(0)
    config = STANDARD.replace(position=position, initializer_range=0.3)
    KrakenForCausalLM(KrakenConfig.from_model_config(config)).save_pretrained(folder)
    ran = []
    attend = Layer.attend

    def counted(self, *arguments):
        ran.append(self.attention.layer_index)
        return attend(self, *arguments)

    found = []
    for embeddings in (False, True):  # embeddings that learn need a pass over all layers
        asked = recipe(
            folder, tiny_data, tmp_path / str(embeddings), steps=1, eval_batches=1,
            adapt={"train_embeddings": embeddings},
        )  # fmt: skip
        asked = dataclasses.replace(asked, model=asked.model.replace(position=position))
        monkeypatch.setattr(Layer, "attend", counted)
        ran.clear()
        run = train(asked)
        monkeypatch.setattr(Layer, "attend", attend)
        found.append(trainer_module.History.load(run.history).training)
        of_training = ran[: 2 * LAYERS - (2 if position == "rope" and not embeddings else 0)]
        of_student = [2, 3] if position == "rope" and not embeddings else [0, 1, 2, 3]
        assert of_training == [0, 1, 2, 3, *of_student]
    assert found[0][0].loss == pytest.approx(found[1][0].loss, rel=1e-5)


def test_accumulated_batches_learn_what_one_batch_does(original, tiny_data, tmp_path):
    found = []
    for batch_size, accumulation in ((4, 1), (2, 2)):
        output = tmp_path / str(accumulation)
        run = train(
            recipe(
                original,
                tiny_data,
                output,
                steps=3,
                batch_size=batch_size,
                gradient_accumulation=accumulation,
                save_every=0,
            )
        )
        found.append(
            (
                trainer_module.History.load(run.history).training,
                load_file(run.model / "model.safetensors"),
            )
        )
    for one, two in zip(found[0][0], found[1][0], strict=True):
        assert one.loss == pytest.approx(two.loss, rel=1e-4)
    for name, tensor in found[0][1].items():
        torch.testing.assert_close(tensor, found[1][1][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("sublayers", [None, (1, 2)], ids=["fixed", "drawn"])
def test_an_interrupted_run_goes_on_bit_for_bit(
    sublayers, original, tiny_data, tmp_path, monkeypatch
):
    options = {"sublayers": sublayers, "adapt": {"layerwise_steps": 3, "layerwise_weight": 0.1}}
    options["late"] = "1-2"
    whole = train(recipe(original, tiny_data, tmp_path / "whole", **options))
    step = trainer_module.DistillingTrainer.training_step
    left = 4

    def cut(self, *arguments, **options):
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return step(self, *arguments, **options)

    asked = recipe(original, tiny_data, tmp_path / "cut", **options)
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module.DistillingTrainer, "training_step", cut)
        with pytest.raises(KeyboardInterrupt):
            train(asked)
    again = train(asked)
    first, second = (load_file(run.model / "model.safetensors") for run in (whole, again))
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    histories = [trainer_module.History.load(run.history) for run in (whole, again)]
    assert histories[0].training == histories[1].training


def test_a_model_of_bfloat16_stays_one(original, tiny_data, tmp_path):
    folder = Path(shutil.copytree(original, tmp_path / "original"))
    KrakenForCausalLM.from_pretrained(original).to(torch.bfloat16).save_pretrained(folder)
    run = train(recipe(folder, tiny_data, tmp_path / "run", steps=1))
    assert {t.dtype for t in load_file(run.model / "model.safetensors").values()} == {
        torch.bfloat16
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"wiring": "standard"}, r"a standard model has no weights that another wiring shares"),
        ({"ffn_dim": 11}, r"another model than the recipe's: they differ in ffn_dim"),
        ({"rope_theta": 5e4}, r"they differ in rope_theta"),
    ],
)
def test_what_cannot_be_adapted_is_refused_before_anything_is_written(
    changes, message, original, tiny_data, tmp_path
):
    asked = recipe(original, tiny_data, tmp_path / "run", late="")
    asked = dataclasses.replace(asked, model=asked.model.replace(**changes))
    with pytest.raises(KrakenError, match=message) as refused:
        train(asked)
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_model_that_is_late_already_is_no_teacher(original, tiny_data, tmp_path):
    rewire(original, tmp_path / "late", wiring="lagged")
    with pytest.raises(KrakenError, match=r"its sums are late already \(lagged\)"):
        train(recipe(tmp_path / "late", tiny_data, tmp_path / "run"))
    assert not (tmp_path / "run").exists()


# Which layers


def probe(original: Path, data: Path, **changes) -> Probe:
    config = STANDARD.replace(
        wiring="shared", num_sublayers=2, heads_per_sublayer=2, kv_heads_per_sublayer=1, ffn_dim=12,
        initializer_range=0.3, **changes,
    )  # fmt: skip
    return Probe(original, config, Sample(data, "validation", 3, 16), torch.device("cpu"))


@pytest.mark.parametrize("late", [(), (1,), (0, 2, 3), (0, 1, 2, 3)])
def test_a_probe_measures_the_model_that_rewiring_makes(late, original, tiny_data, tmp_path):
    found = probe(original, tiny_data)
    if late:
        rewire(
            original, tmp_path / "m", wiring="shared", num_sublayers=2,
            late_layers=",".join(map(str, late)),
        )  # fmt: skip
    folder = tmp_path / "m" if late else original
    first = _first_tokens(tiny_data, 3 * 15 + 1)
    model = KrakenForCausalLM.from_pretrained(folder).eval()
    total = 0.0
    for start in range(0, 45, 15):
        ids = first[start : start + 16][None]
        with torch.no_grad():
            logits = model(ids[:, :-1]).logits
        total += float(F.cross_entropy(logits[0], ids[0, 1:], reduction="sum"))
    assert found.perplexity(late) == pytest.approx(math.exp(total / 45), rel=1e-5)


def _first_tokens(data: Path, count: int) -> torch.Tensor:
    from krakenlm.data.tokens import open_split

    return torch.tensor(open_split(data, "validation").tokens[:count].astype("int64"))


def test_a_layout_that_computes_something_else_is_refused(original, tiny_data):
    found = probe(original, tiny_data)
    assert found.check_equal() < 1e-5
    with torch.no_grad():
        found._model.model.layers[1].attention.output.weight.mul_(1.1)
    with pytest.raises(KrakenError, match=r"laid out for 2 branches.*differ by"):
        found.check_equal()


@pytest.mark.parametrize(
    ("late", "budget", "chosen"),
    [
        (None, None, (0, 1, 2, 3)),
        ("all", None, (0, 1, 2, 3)),
        ("2", None, (1, 3)),
        ("1-2", None, (1, 2)),
        (None, "+30%", (1, 3)),
        (None, "perplexity +30%", (1, 3)),
        (None, "11 %", (3,)),
    ],
)
def test_late_layers_are_those_that_mind_least(late, budget, chosen):
    alone = {3: 1.0, 1: 1.5, 0: 2.0, 2: 4.0}  # what each adds to a perplexity of 10
    found = Late.parse(late, budget, LAYERS).choose(
        list(alone), lambda layers: 10 + sum(alone[layer] for layer in layers)
    )
    assert found == chosen


@pytest.mark.parametrize(
    ("late", "budget", "message"),
    [
        ("2", "+30%", "give one"),
        ("0", None, "give 1 to 4, or layers such as 8-3"),
        ("5", None, "has 4 layers"),
        ("1-4", None, r"layers 0 to 3"),
        ("some", None, "such as"),
        (None, "30", "what perplexity may rise by"),
        (None, "+0%", "what perplexity may rise by"),
    ],
)
def test_choices_that_cannot_be_are_one_line(late, budget, message):
    with pytest.raises(KrakenError, match=message) as refused:
        Late.parse(late, budget, LAYERS)
    assert "\n" not in str(refused.value)


def test_a_budget_for_no_layer_says_what_the_first_one_takes():
    with pytest.raises(KrakenError, match=r"minds least, 3, already takes.* of 10 above 10.5"):
        Late(budget=0.05).choose([3, 2], lambda layers: 10 + len(layers))


# The command


def test_adapt_leaves_a_model_and_says_what_became_of_it(original, tiny_data, tmp_path, capfd):
    out = tmp_path / "out"
    arguments = (
        "adapt", original, "--data", tiny_data, "--out", out, "--sublayers", 2, "--late", 2,
        "--tokens", 600, "--set", "training.sequence_length=16", "--set", "training.steps=8",
        "--set", "training.lr=3e-3", "--sample", "2x16", "--also", tiny_data, "--device", "cpu",
    )  # fmt: skip
    done = tiny.call(capfd, *arguments)
    assert done.code == 0, done.err
    said = json.loads((out / "adapt.json").read_text())
    sample = said["perplexity"][str(tiny_data)]
    assert sample["original"] != sample["rewired"] != sample["adapted"]
    assert said["difference_as_laid_out"] < 1e-5
    assert set(said["zero_shot"]) >= {"", "0", "1", "2", "3"}
    ranking = sorted(range(LAYERS), key=lambda layer: said["zero_shot"][str(layer)])
    assert said["late_layers"] == format_layers(ranking[:2])
    assert said["tokens"] == 8 * 8 * 16
    assert str(out / "run" / "model") in done.out and "over original" in done.out
    assert "GiB" in done.err
    assert perplexity(out / "run" / "model", tiny_data, window=16).perplexity > 1
    again = tiny.call(capfd, *arguments)
    assert again.code == 0 and "nothing to do" in again.err


def test_several_processes_train_a_recipe(original, tiny_data, tmp_path, capfd, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    out = tmp_path / "out"
    done = tiny.call(capfd, "adapt", original, "--data", tiny_data, "--out", out)
    assert done.code == 2 and "adapt is one process" in done.err
    assert not out.exists()


def test_an_adapted_model_ends_answers_as_its_teacher_did(original, tiny_data, tmp_path):
    folder = Path(shutil.copytree(original, tmp_path / "original"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "eos_token_id": [5, 7]}))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 7]}))
    run = train(recipe(folder, tiny_data, tmp_path / "run", steps=1))
    assert read_eos_token_ids(run.model) == {5, 7}


def test_a_folder_of_something_else_is_left_alone(original, tiny_data, tmp_path, capfd):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    done = tiny.call(capfd, "adapt", original, "--data", tiny_data, "--out", tmp_path / "out")
    assert done.code == 2 and "holds no adaptation" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--wiring", "kraken"], "kraken has norms for each branch"),
        (["--sublayers", "3"], "does not divide"),
        (["--wiring", "lagged", "--sublayers", "1,2"], "the same function for any number"),
        (["--set", "model.hidden_size=3"], "give a key of training or adapt"),
        (["--set", "training.stepz=3"], "did you mean 'steps'"),
        (["--sample", "4"], "such as 4x512"),
        (["--sample", "4000x512"], "make it smaller"),
        (["--tokens", "0"], "needs 1 or more"),
        (["--late", "99"], "has 4 layers"),
        (["--message-parts", "5"], "not a multiple of message_parts=5"),
    ],
)
def test_what_cannot_be_asked_is_one_line(arguments, message, original, tiny_data, tmp_path, capfd):
    out = tmp_path / "out"
    done = tiny.call(capfd, "adapt", original, "--data", tiny_data, "--out", out, *arguments)
    assert done.code == 2, done.out
    assert len(done.complaints) == 1 and message in done.complaints[0]
    assert not out.exists()


def test_what_it_needs_grows_with_what_is_trained(original, tiny_data):
    def needed(**options) -> int:
        return bytes_needed(recipe(original, tiny_data, Path("nowhere"), **options))

    few, all_layers = needed(late="3"), needed(late="")
    assert needed(late="3", batch_size=4) > few
    assert all_layers > few > 4 * count_parameters(STANDARD)
    with_embeddings = needed(late="3", adapt={"train_embeddings": True})
    assert with_embeddings - few == 4 * 4 * tiny.VOCABULARY * STANDARD.hidden_size


def test_the_plan_has_a_recipe_that_training_takes(original, tiny_data, tmp_path):
    with_dropout = STANDARD.replace(dropout=0.1)
    original = Path(shutil.copytree(original, tmp_path / "original"))
    write_json(original / "config.json", with_dropout.to_hf_dict())
    plan = Plan.of(
        original, tiny_data, tmp_path / "out", wiring="shared", sublayers=[1, 2], message_parts=2,
        late="1-3", budget=None, tokens=10_000, overrides=["adapt.layerwise_weight=0.5"],
    )  # fmt: skip
    made = plan.recipe((1, 2, 3))
    assert made.adapt.layerwise_weight == 0.5 and made.adapt.teacher == original
    assert made.training.sublayers == (1, 2) and made.model.message_parts == 2
    assert made.model.dropout == 0
    steps, length = made.training.steps, made.training.sequence_length
    assert steps * made.training.sequences_per_step * length == pytest.approx(10_000, rel=0.1)
