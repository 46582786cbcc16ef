"""Training by recipe: it learns, it leaves whole files, it goes on where it stopped."""

import dataclasses
import errno
import fcntl
import json
import math
import os
import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, TrainerCallback

import tiny
from krakenlm.config import derive
from krakenlm.data.manifest import Manifest
from krakenlm.data.tokens import open_split, prepare
from krakenlm.errors import KrakenError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.model.attention import Attention
from krakenlm.model.checkpoint import read_eos_token_ids
from krakenlm.train import callbacks, checks, run_folder
from krakenlm.train import trainer as trainer_module
from krakenlm.train.loop import LoopTrainer
from krakenlm.train.recipe import Recipe, Training
from krakenlm.train.run_folder import RunFolder
from krakenlm.train.trainer import train

STANDARD = tiny.model_config(wiring="standard", num_sublayers=1)
KRAKEN = tiny.model_config()


@pytest.fixture
def recipe(tiny_data: Path, tmp_path: Path) -> Callable[..., Recipe]:
    def make(model=KRAKEN, output="run", data=tiny_data, **training) -> Recipe:
        settings = {
            "steps": 8,
            "batch_size": 4,
            "learning_rate": 1e-2,
            "log_every": 1,
            "precision": "float32",
            "device": "cpu",
            **training,
        }
        return Recipe(
            model=model, data=data, output=tmp_path / output, training=Training(**settings)
        )

    return make


def history(run: RunFolder) -> dict:
    """What does not depend on the machine."""
    found = json.loads(run.history.read_text())
    assert found.pop("speed")["seconds"] > 0
    return found


def losses(run: RunFolder) -> list[float]:
    return [entry["loss"] for entry in history(run)["training"]]


def weights(run: RunFolder) -> dict[str, torch.Tensor]:
    return load_file(run.model / "model.safetensors")


def at_step(monkeypatch, step: int, action: Callable[[], None], event: str = "on_step_end") -> None:
    """Do something when a step ends (or at another event of Trainer's callbacks)."""

    def when(self, args, state, control, **kwargs):
        if state.global_step == step:
            action()

    watcher = type("_Watcher", (TrainerCallback,), {event: when})()
    make = trainer_module._make_trainer

    def with_watcher(*arguments):
        made = make(*arguments)
        made.add_callback(watcher)
        return made

    monkeypatch.setattr(trainer_module, "_make_trainer", with_watcher)


def interrupt() -> None:
    raise KeyboardInterrupt


def nothing_half_written(run: RunFolder) -> bool:
    for path in run.path.rglob("*"):
        if "-partial-" in path.name:
            return False
        if path.name.startswith("checkpoint-") and not (path / "complete").exists():
            return False
        if path.suffix == ".json":
            json.loads(path.read_text())
    return True


@pytest.mark.parametrize(
    "model", [STANDARD, KRAKEN, derive(STANDARD, 2)], ids=["standard", "kraken", "derived"]
)
def test_a_model_learns_and_is_saved_whole(recipe, tiny_data, model):
    run = train(recipe(model, steps=20, eval_every=8, eval_batches=2))
    found = losses(run)
    assert len(found) == 20
    assert sum(found[-3:]) / 3 < found[0] - 0.5
    entries = history(run)
    assert [entry["step"] for entry in entries["validation"]] == [8, 16, 20]
    assert entries["validation"][-1]["loss"] < entries["validation"][0]["loss"]
    assert entries["tokens_per_step"] == 4 * tiny.CONTEXT
    loaded = AutoModelForCausalLM.from_pretrained(run.model)
    assert type(loaded) is KrakenForCausalLM
    assert loaded.config.to_model_config() == model
    assert entries["parameters"] == sum(p.numel() for p in loaded.parameters())
    assert loaded.config.eos_token_id == 0
    # Trainer of Transformers 5.16 makes a list of it, which means the same.
    assert loaded.generation_config.eos_token_id in (0, [0])
    assert read_eos_token_ids(run.model) == {0}
    files = {path.name for path in run.model.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth"))]
    resolved = json.loads((run.path / "recipe.json").read_text())
    manifest = Manifest.load(tiny_data)
    assert resolved.pop("data_sha256") == {
        "train": manifest.splits.train.sha256,
        "validation": manifest.splits.validation.sha256,
        "tokenizer": manifest.tokenizer.sha256,
    }
    assert resolved == json.loads(
        json.dumps(recipe(model, steps=20, eval_every=8, eval_batches=2).to_dict())
    )
    assert nothing_half_written(run)


def test_the_loss_logged_is_the_loss_of_the_batch(recipe, tiny_data):
    """The first value is what an untrained model makes of the data: about ln V."""
    run = train(recipe(steps=2, learning_rate=1e-9))
    expected = torch.log(torch.tensor(float(tiny.VOCABULARY))).item()
    assert losses(run)[0] == pytest.approx(expected, abs=0.1)
    model = AutoModelForCausalLM.from_pretrained(run.model)
    tokens = torch.from_numpy(open_split(tiny_data, "validation").tokens.astype("int64"))
    windows = tokens[: len(tokens) // tiny.CONTEXT * tiny.CONTEXT].view(-1, tiny.CONTEXT)
    with torch.no_grad():
        found = model(windows, labels=windows).loss.item()
    assert history(run)["validation"][-1]["loss"] == pytest.approx(found, rel=1e-5)


@pytest.mark.parametrize("wiring", ["standard", "kraken", "parallel", "ladder"])
def test_matrices_and_embeddings_decay_norms_and_biases_do_not(recipe, wiring):
    sublayers = 2 if wiring == "kraken" else 1
    model = tiny.model_config(
        wiring=wiring, num_sublayers=sublayers, bias=True, tie_word_embeddings=False
    )
    decayed = set(
        LoopTrainer.get_decay_parameter_names(
            None, KrakenForCausalLM(KrakenConfig.from_model_config(model))
        )
    )
    layer = {
        f"model.layers.{index}.{part}.weight"
        for index in range(2)
        for part in ("attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down")
    }
    others = {"model.embed_tokens.weight", "model.embed_positions.weight", "lm_head.weight"}
    conjunction = {"model.conjunction.weight"} if wiring == "kraken" else set()
    assert decayed == layer | others | conjunction


def test_the_optimizer_gets_these_groups(recipe, monkeypatch):
    groups = []

    def look(self, args, state, control, model, optimizer, **kwargs):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups.extend(
            (group["weight_decay"], {names[id(p)] for p in group["params"]})
            for group in optimizer.param_groups
        )

    watcher = type("_Watcher", (TrainerCallback,), {"on_train_begin": look})()
    make = trainer_module._make_trainer

    def with_watcher(*arguments):
        made = make(*arguments)
        made.add_callback(watcher)
        return made

    monkeypatch.setattr(trainer_module, "_make_trainer", with_watcher)
    train(recipe(steps=1, weight_decay=0.25))
    (decay, decayed), (none, others) = groups
    assert (decay, none) == (0.25, 0.0)
    assert "model.layers.0.attention.qkv.weight" in decayed
    assert others == {
        name for name, _ in KrakenForCausalLM(
            KrakenConfig.from_model_config(KRAKEN)
        ).named_parameters() if "norm" in name
    }  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [{}, {"dropout": 0.2}, {"gradient_accumulation": 2}, {"log_every": 4}],
    ids=["plain", "dropout", "acc", "between-logs"],
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(recipe, monkeypatch, options):
    options = dict(options)
    model = KRAKEN.replace(dropout=options.pop("dropout", 0.0))
    settings = {"steps": 10, "save_every": 3, "eval_every": 5, **options}
    whole = train(recipe(model, output="whole", **settings))
    with monkeypatch.context() as patch:
        at_step(patch, 8, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(model, output="stopped", **settings))
    stopped = RunFolder(recipe(output="stopped").output)
    assert not stopped.model.exists() and not stopped.history.exists()
    assert nothing_half_written(stopped)
    assert stopped.last_checkpoint().name == "checkpoint-6"
    steps_taken = []
    at_step(monkeypatch, 7, lambda: steps_taken.append(7))
    at_step(monkeypatch, 6, lambda: steps_taken.append(6))
    again = train(recipe(model, output="stopped", **settings))
    assert steps_taken == [7]
    assert history(again) == history(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(again)[name], tensor), name


def test_an_interruption_before_the_first_checkpoint_begins_anew(recipe, monkeypatch):
    whole = train(recipe(output="whole"))
    with monkeypatch.context() as patch:
        at_step(patch, 3, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(output="stopped"))
    assert history(train(recipe(output="stopped"))) == history(whole)


def test_an_interruption_while_the_model_is_saved_leaves_no_half_of_it(recipe, monkeypatch):
    settings = {"steps": 4, "save_every": 2}
    with monkeypatch.context() as patch:
        patch.setattr(LoopTrainer, "save_model", lambda *_, **__: interrupt())
        with pytest.raises(KeyboardInterrupt):
            train(recipe(**settings))
    run = RunFolder(recipe().output)
    assert not run.model.exists()
    assert nothing_half_written(run)
    assert train(recipe(**settings)).finished


@pytest.mark.parametrize("where", ["write_json", "whole_directory"])
def test_an_interruption_after_the_last_step_repeats_no_step(recipe, monkeypatch, where):
    settings = {"steps": 4, "save_every": 2}
    whole = train(recipe(output="whole", **settings))
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, where, lambda *_, **__: interrupt())
        with pytest.raises(KeyboardInterrupt):
            train(recipe(output="stopped", **settings))
    again = train(recipe(output="stopped", **settings))
    assert history(again) == history(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(again)[name], tensor), name


def test_partial_checkpoints_are_removed_and_never_used(recipe, monkeypatch):
    """A save that is cut short (here: Ctrl-C before its end) leaves no mark, and so no folder."""
    settings = {"steps": 6, "save_every": 2}
    with monkeypatch.context() as patch:
        original = LoopTrainer._save_rng_state

        def cut_short(self, output_dir):
            if self.state.global_step == 4:
                raise KeyboardInterrupt
            original(self, output_dir)

        patch.setattr(LoopTrainer, "_save_rng_state", cut_short)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(**settings))
    run = RunFolder(recipe().output)
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-2"]
    # What a killed process leaves is there when the next one begins.
    (run.checkpoints / "checkpoint-4").mkdir()
    (run.checkpoints / "checkpoint-4" / "model.safetensors").write_bytes(b"half")
    assert run.last_checkpoint().name == "checkpoint-2"
    train(recipe(**settings))
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "checkpoint-4",
        "checkpoint-6",
    ]
    assert nothing_half_written(run)


@pytest.mark.parametrize("keep", [1, 3])
def test_so_many_checkpoints_are_kept(recipe, keep):
    run = train(recipe(steps=10, save_every=2, keep_checkpoints=keep))
    kept = sorted(int(path.name.partition("-")[2]) for path in run.checkpoints.iterdir())
    assert kept == [2, 4, 6, 8, 10][-keep:]


def test_an_old_checkpoint_loses_its_mark_before_it_is_removed(recipe, monkeypatch):
    def stop(path, **kwargs):
        raise KeyboardInterrupt

    run = RunFolder(recipe().output)
    for step in (2, 10, 9):
        (run.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
        run.mark_complete(step)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            run.remove_old_checkpoints(2)
    assert run.last_checkpoint().name == "checkpoint-10"
    assert not (run.checkpoints / "checkpoint-2" / "complete").exists()
    assert (run.checkpoints / "checkpoint-9" / "complete").exists()


def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(recipe):
    run = train(recipe(steps=2))
    before = tiny.snapshot(run.path)
    with pytest.raises(KrakenError, match=r"training\.steps 2 is now 1"):
        train(recipe(steps=1), extend=True)
    with pytest.raises(KrakenError, match=r"model\.wiring 'kraken' is now 'standard'") as caught:
        train(recipe(STANDARD, steps=2))
    assert "--restart" in str(caught.value) and "\n" not in str(caught.value)
    assert tiny.snapshot(run.path) == before


def test_a_run_goes_on_wherever_it_and_its_data_were_moved(
    recipe, tiny_data, tmp_path, monkeypatch
):
    undisturbed = train(recipe(output="undisturbed", save_every=2))
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 5, interrupt)
        train(recipe(data=data, save_every=2))
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").rename(tmp_path / "elsewhere" / "renamed")
    data.rename(tmp_path / "elsewhere" / "data")
    monkeypatch.chdir(tmp_path / "elsewhere")
    moved = dataclasses.replace(recipe(save_every=2), data=Path("data"), output=Path("renamed"))
    run = train(moved)
    assert history(run) == history(undisturbed)
    assert all(torch.equal(weights(undisturbed)[name], t) for name, t in weights(run).items())
    assert json.loads((run.path / "recipe.json").read_text())["output"] == "renamed"
    assert train(moved).finished


def test_what_is_kept_and_told_of_a_run_may_change(recipe, monkeypatch):
    undisturbed = train(recipe(output="undisturbed", save_every=2))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, 5, interrupt)
        train(recipe(save_every=2))
    run = train(recipe(save_every=3, keep_checkpoints=1))
    assert history(run) == history(undisturbed)


def test_a_run_of_an_earlier_version_goes_on(recipe):
    """Its recipe lacks the settings that came later."""
    run = train(recipe(steps=2))
    file = run.path / "recipe.json"
    resolved = json.loads(file.read_text())
    del resolved["training"]["schedule_steps"], resolved["model"]["sum_scale"]
    file.write_text(json.dumps(resolved))
    assert train(recipe(steps=2)).finished


EXTENDED = {"eval_every": 3, "save_every": 2, "warmup_steps": 2}


def rates(run: RunFolder) -> list[float]:
    """Learning rates of all steps that were logged."""
    state = json.loads((run.last_checkpoint() / "trainer_state.json").read_text())
    return [entry["learning_rate"] for entry in state["log_history"] if "learning_rate" in entry]


def test_a_finished_run_is_extended_at_the_rate_it_ended_with(recipe):
    short = train(recipe(steps=8, **EXTENDED))
    before, rates_before, old_weights = history(short), rates(short), weights(short)
    run = train(recipe(steps=12, **EXTENDED), extend=True)
    after = history(run)
    assert len(after["training"]) == 12
    assert after["training"][:8] == before["training"]
    steps = [entry["step"] for entry in after["validation"]]
    assert steps == [3, 6, 8, 9, 12]
    assert after["validation"][:3] == before["validation"]
    assert rates(run)[:8] == rates_before
    assert rates(run)[7] > 1e-3
    assert rates(run)[8:] == pytest.approx([1e-3] * 4)
    kept = load_file(run.path / "model-at-8" / "model.safetensors")
    assert all(torch.equal(old_weights[name], tensor) for name, tensor in kept.items())
    assert not torch.equal(
        weights(run)["model.embed_tokens.weight"], kept["model.embed_tokens.weight"]
    )
    # The same command again, with and without the word, finds it done.
    assert history(train(recipe(steps=12, **EXTENDED), extend=True)) == after
    assert history(train(recipe(steps=12, **EXTENDED))) == after


@pytest.mark.parametrize("interrupted_at", [5, 11])
def test_it_does_not_matter_when_a_run_is_extended_or_interrupted(
    recipe, monkeypatch, interrupted_at
):
    train(recipe(output="whole", steps=8, **EXTENDED))
    whole = train(recipe(output="whole", steps=14, **EXTENDED), extend=True)
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        at_step(patch, interrupted_at, interrupt)
        train(recipe(steps=8, **EXTENDED))
        train(recipe(steps=14, **EXTENDED), extend=True)
    run = train(recipe(steps=14, **EXTENDED), extend=interrupted_at < 8)
    assert history(run)["training"] == history(whole)["training"]
    assert all(torch.equal(weights(whole)[name], t) for name, t in weights(run).items())


def test_more_steps_without_the_word_are_refused_and_the_word_is_named(recipe):
    run = train(recipe(steps=2))
    before = tiny.snapshot(run.path)
    with pytest.raises(
        KrakenError, match=r"run of 2 steps, and the recipe has 3: --extend .*0\.001"
    ):
        train(recipe(steps=3))
    with pytest.raises(KrakenError, match=r"learning_rate 0\.01 is now 0\.1"):
        train(recipe(steps=3, learning_rate=0.1), extend=True)
    with pytest.raises(KrakenError, match=r"it kept no checkpoint \(save_every = 0\)"):
        train(recipe(steps=3), extend=True)
    assert tiny.snapshot(run.path) == before
    train(recipe(output="to-nought", steps=2, save_every=1, min_learning_rate_ratio=0.0))
    with pytest.raises(KrakenError, match="learning rate ended at 0"):
        train(
            recipe(output="to-nought", steps=3, save_every=1, min_learning_rate_ratio=0.0),
            extend=True,
        )


def test_the_same_recipe_begins_anew_with_restart(recipe):
    first = train(recipe(steps=2))
    before = history(first)
    again = train(recipe(steps=2), restart=True)
    assert (again.path / "recipe.json").is_file()
    assert history(again) == before


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_fewer_steps_than_an_extended_run_has_are_all_that_is_named(recipe, steps):
    train(recipe(steps=2, save_every=1))
    run = train(recipe(steps=4, save_every=1), extend=True)
    before = tiny.snapshot(run.path)
    for extend in (False, True):
        with pytest.raises(KrakenError, match=rf"\(training\.steps 4 is now {steps}\)"):
            train(recipe(steps=steps, save_every=1), extend=extend)
    assert tiny.snapshot(run.path) == before


def test_a_run_is_extended_again(recipe):
    train(recipe(steps=4, save_every=2))
    train(recipe(steps=6, save_every=2), extend=True)
    twice = train(recipe(steps=8, save_every=2), extend=True)
    train(recipe(output="once", steps=4, save_every=2))
    once = train(recipe(output="once", steps=8, save_every=2), extend=True)
    assert history(twice)["training"] == history(once)["training"]
    assert rates(twice)[4:] == pytest.approx([1e-3] * 4)
    assert sorted(path.name for path in twice.path.glob("model*")) == [
        *("model", "model-at-4", "model-at-6")
    ]


def test_an_interruption_while_a_run_is_extended_loses_nothing(recipe, monkeypatch):
    """The model was put aside, and the recipe not yet written."""
    short = {"steps": 2, "save_every": 1}
    before = weights(train(recipe(**short)))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(run_folder, "write_json", lambda *_: interrupt())
        train(recipe(steps=3, save_every=1), extend=True)
    run = train(recipe(**short))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights(run).items())
    run = train(recipe(steps=3, save_every=1), extend=True)
    assert run.finished and (run.path / "model-at-2").is_dir()


def test_a_schedule_that_only_warms_up_is_extended_at_its_top(recipe, capfd):
    """Whatever the foot of the cosine would be."""
    settings = {"warmup_steps": 2, "save_every": 1, "min_learning_rate_ratio": 0.0}
    train(recipe(steps=2, **settings))
    with pytest.raises(KrakenError, match=r"at the learning rate 0\.01, which"):
        train(recipe(steps=4, **settings))
    run = train(recipe(steps=4, **settings), extend=True)
    assert "after step 2 of 4 the learning rate stays at 0.01" in capfd.readouterr().err
    assert rates(run) == pytest.approx([0.0, 5e-3, 1e-2, 1e-2])


def test_there_must_be_a_run_to_extend(recipe, tmp_path):
    with pytest.raises(KrakenError, match="holds no run that --extend could go on with"):
        train(recipe(), extend=True)
    assert not (tmp_path / "run").exists()
    run = train(recipe(steps=2, save_every=1))
    before = tiny.snapshot(run.path)
    with pytest.raises(KrakenError, match="--extend goes on with a run and --restart discards it"):
        train(recipe(steps=3, save_every=1), extend=True, restart=True)
    assert tiny.snapshot(run.path) == before


def test_restart_of_an_extended_run_leaves_nothing_of_it(recipe):
    train(recipe(steps=2, save_every=1))
    run = train(recipe(steps=3, save_every=1), extend=True)
    assert (run.path / "model-at-2").is_dir()
    again = train(recipe(steps=2), restart=True)
    assert not (again.path / "model-at-2").exists()


def test_a_recipe_may_end_its_schedule_early(recipe):
    run = train(recipe(steps=6, schedule_steps=4, save_every=1))
    assert rates(run)[3] > 1e-3
    assert rates(run)[4:] == pytest.approx([1e-3] * 2)


def test_other_tokens_in_the_same_place_are_refused(recipe, tiny_data, tmp_path):
    """A run that goes on with other data would be neither the old run nor a new one."""
    data = Path(shutil.copytree(tiny_data, tmp_path / "data"))
    train(recipe(steps=2, data=data))
    (tmp_path / "other.txt").write_text(tiny.text(500))
    shutil.rmtree(data)
    prepare([tmp_path / "other.txt"], f"train:{tiny.VOCABULARY}", data, validation_fraction=0.1)
    with pytest.raises(KrakenError, match=r"holds a run of another recipe \(data_sha256\."):
        train(recipe(steps=2, data=data))
    assert train(recipe(steps=2, data=data), restart=True).finished


def test_the_same_tokens_are_gone_on_with_whoever_saved_their_tokenizer(recipe):
    run = train(recipe(steps=2))
    file = run.path / "recipe.json"
    resolved = json.loads(file.read_text())
    resolved["data_sha256"]["tokenizer"] = "0" * 64
    file.write_text(json.dumps(resolved))
    assert train(recipe(steps=2)).finished


def test_restart_discards_the_other_run(recipe):
    first = train(recipe(steps=4, save_every=2))
    assert len(losses(first)) == 4
    second = train(recipe(STANDARD, steps=2), restart=True)
    assert len(losses(second)) == 2
    assert list(second.checkpoints.iterdir()) == []
    assert json.loads((second.path / "recipe.json").read_text())["model"]["wiring"] == "standard"


def test_a_finished_run_is_left_alone(recipe, monkeypatch, capfd):
    run = train(recipe(steps=2))
    before = tiny.snapshot(run.path)
    monkeypatch.setattr(trainer_module, "_make_trainer", None)
    capfd.readouterr()
    assert train(recipe(steps=2)) == run
    assert "nothing to do" in capfd.readouterr().err
    assert tiny.snapshot(run.path) == before


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("name", ["mine.txt", "recipe.json"])
def test_a_folder_that_holds_something_else_is_refused(recipe, tmp_path, name, restart):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text('{"flour": "500 g"}')
    with pytest.raises(KrakenError, match="is not empty and holds no run"):
        train(recipe(), restart=restart)
    assert (tmp_path / "run" / name).read_text() == '{"flour": "500 g"}'


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(recipe, monkeypatch):
    settings = {"steps": 6, "save_every": 2}

    def poison() -> None:
        made[0].model.model.norm.weight.data.fill_(float("nan"))

    made = []
    make = trainer_module._make_trainer
    monkeypatch.setattr(
        trainer_module, "_make_trainer", lambda *args: made.append(make(*args)) or made[-1]
    )
    at_step(monkeypatch, 3, poison)
    with pytest.raises(
        KrakenError, match=r"step 4: loss is nan: lower learning_rate.*checkpoint-2 \(step 2\)"
    ):
        train(recipe(**settings))
    run = RunFolder(recipe().output)
    assert [path.name for path in run.checkpoints.iterdir()] == ["checkpoint-2"]
    assert not run.model.exists() and nothing_half_written(run)


def spoil(monkeypatch, step: int, value: float) -> None:
    """Let a weight be no number behind a step, before anything is saved."""
    make = trainer_module._make_trainer

    def with_spoiler(*arguments):
        made = make(*arguments)

        def when(self, args, state, control, **kwargs):
            if state.global_step == step:
                made.model.model.norm.weight.data[0, 0] = value

        made.add_callback(type("_Spoiler", (TrainerCallback,), {"on_step_end": when})())
        return made

    monkeypatch.setattr(trainer_module, "_make_trainer", with_spoiler)


def test_weights_that_are_no_numbers_are_not_saved(recipe, monkeypatch):
    """The loss of the step itself was fine, and the next would be looked at too late."""
    spoil(monkeypatch, 4, math.inf)
    with pytest.raises(KrakenError, match=r"step 4: a weight is nan.*checkpoint-2 \(step 2\)"):
        train(recipe(steps=8, save_every=2, log_every=8))
    run = RunFolder(recipe().output)
    assert run.last_checkpoint().name == "checkpoint-2"
    assert nothing_half_written(run)


def test_the_step_is_named_also_where_losses_are_logged_seldom(recipe, monkeypatch):
    spoil(monkeypatch, 3, math.nan)
    with pytest.raises(KrakenError, match=r"step 4: loss is nan.*there is no checkpoint before"):
        train(recipe(steps=8, log_every=8))


def test_the_progress_bar_is_taken_down_however_training_ends(recipe, monkeypatch):
    """A bar that stays would hide the cursor of the terminal and refuse the next one."""
    stopped = []
    stop = callbacks.Display.stop
    monkeypatch.setattr(
        callbacks.Display,
        "stop",
        lambda self: (stopped.append(self._progress is not None), stop(self)),
    )
    at_step(monkeypatch, 2, interrupt)
    with pytest.raises(KeyboardInterrupt):
        train(recipe())
    assert any(stopped)


@pytest.mark.parametrize("extra", ["tensorboard", "wandb"])
def test_what_a_report_needs_is_named(recipe, monkeypatch, tmp_path, extra):
    monkeypatch.setattr(checks, "find_spec", lambda name: None)
    with pytest.raises(KrakenError, match=re.escape(f"pip install 'krakenlm[{extra}]'")):
        train(recipe(**{extra: True}))
    assert not (tmp_path / "run").exists()


def test_without_a_gpu_cuda_is_refused_and_the_folder_stays_free(recipe, tmp_path):
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(KrakenError, match="device='cuda': this machine has no GPU"):
        train(recipe(device="cuda"))
    assert not (tmp_path / "run").exists()
    assert train(recipe(steps=1)).finished


@pytest.mark.parametrize(
    ("changes", "training", "essentials"),
    [
        ({"vocab_size": 290}, {}, ["tokens up to 299", "vocab_size of 290", "leave vocab_size"]),
        ({}, {"sequence_length": 64}, ["sequence_length=64", "max_position_embeddings=32"]),
        (
            {"max_position_embeddings": 4096},
            {},
            ["validation-00000.bin holds", "sequence of 4096"],
        ),
    ],
)
def test_data_and_model_that_do_not_fit_are_refused(
    recipe, tmp_path, changes, training, essentials
):
    with pytest.raises(KrakenError) as caught:
        train(recipe(KRAKEN.replace(**changes), **training))
    for essential in essentials:
        assert essential in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_shorter_sequences_and_a_larger_vocabulary_are_fine(recipe):
    run = train(recipe(KRAKEN.replace(vocab_size=512), steps=2, sequence_length=16))
    assert history(run)["tokens_per_step"] == 4 * 16


def damage_shape(path: Path) -> None:
    tensors = load_file(path)
    tensors["model.embed_positions.weight"] = torch.zeros(8, 16)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "damaged or truncated"),
        (lambda path: path.write_bytes(b""), "damaged or truncated"),
        (lambda path: path.unlink(), "damaged or truncated"),
        (damage_shape, "tensor model.embed_positions.weight does not fit"),
    ],
    ids=["truncated", "empty", "gone", "shape"],
)
def test_a_damaged_checkpoint_is_refused_with_a_way_out(recipe, monkeypatch, damage, problem):
    settings = {"steps": 6, "save_every": 2}
    with monkeypatch.context() as patch:
        at_step(patch, 5, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(**settings))
    run = RunFolder(recipe().output)
    damage(run.last_checkpoint() / "model.safetensors")
    with pytest.raises(KrakenError, match=problem) as caught:
        train(recipe(**settings))
    message = str(caught.value)
    assert f"remove {run.checkpoints}/checkpoint-4" in message and "--restart" in message
    shutil.rmtree(run.checkpoints / "checkpoint-4")
    assert train(recipe(**settings)).finished


def give_away(path: Path) -> None:
    try:
        os.chown(path, 65534, -1)
    except PermissionError:
        pytest.skip("only root can give a file away")


def share(path: Path) -> None:
    path.chmod(0o666)


@pytest.mark.parametrize(
    ("change", "what", "problem"),
    [
        (give_away, "optimizer.pt", "belongs to user 65534"),
        (share, "rng_state.pth", "others may write to it"),
        (share, "", "others may write to it"),
    ],
    ids=["another user's", "a file that others may write", "a folder that others may write"],
)
def test_what_somebody_else_could_have_written_is_not_unpickled(
    recipe, monkeypatch, change, what, problem
):
    with monkeypatch.context() as patch:
        at_step(patch, 5, interrupt)
        with pytest.raises(KeyboardInterrupt):
            train(recipe(steps=6, save_every=2))
    path = RunFolder(recipe().output).last_checkpoint() / what
    change(path)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(KrakenError, match=f"{problem}, and going on reads files that may run"):
        train(recipe(steps=6, save_every=2))


@pytest.mark.filterwarnings("error:.*checkpointing")
def test_gradient_checkpointing_computes_layers_again_and_learns_the_same(recipe, monkeypatch):
    calls = []
    attend = Attention.forward

    def counted(self, *arguments):
        calls.append(torch.is_grad_enabled())
        return attend(self, *arguments)

    monkeypatch.setattr(Attention, "forward", counted)
    plain = train(recipe(output="plain", steps=2))
    once = calls.count(True)
    again = train(recipe(output="again", steps=2, gradient_checkpointing=True))
    assert once > 0 and calls.count(True) == once + 2 * once
    assert losses(again) == pytest.approx(losses(plain), rel=1e-5)


def test_all_wirings_see_the_same_tokens_in_the_same_order(recipe, monkeypatch):
    seen = []
    step = LoopTrainer.training_step

    def recorded(self, model, inputs, *args, **kwargs):
        seen[-1].append(inputs["input_ids"].clone())
        return step(self, model, inputs, *args, **kwargs)

    monkeypatch.setattr(LoopTrainer, "training_step", recorded)
    for name, model in (("kraken", KRAKEN), ("standard", STANDARD)):
        seen.append([])
        train(recipe(model, output=name, steps=4))
    assert len(seen[0]) == 4
    assert all(torch.equal(*pair) for pair in zip(*seen, strict=True))
    assert not torch.equal(seen[0][0], seen[0][1])


def test_sigterm_saves_and_the_run_goes_on_as_if_nothing_had_happened(
    recipe, monkeypatch, own_signals
):
    settings = {"steps": 8, "log_every": 3}
    whole = train(recipe(output="whole", **settings))
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        at_step(patch, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit) as ended:
            train(recipe(output="stopped", **settings))
    assert ended.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    stopped = RunFolder(recipe(output="stopped").output)
    assert stopped.last_checkpoint().name == "checkpoint-5"
    assert not stopped.model.exists() and nothing_half_written(stopped)
    again = train(recipe(output="stopped", **settings))
    assert history(again) == history(whole)
    for name, tensor in weights(whole).items():
        assert torch.equal(weights(again)[name], tensor), name


def test_a_run_in_use_is_left_alone(recipe):
    run = train(recipe(steps=2))
    shutil.rmtree(run.model)
    assert not run.is_running
    with run.held():
        assert run.is_running
        for restart in (False, True):
            with pytest.raises(KrakenError, match="another process trains here"):
                train(recipe(steps=2), restart=restart)
    assert not run.is_running
    assert train(recipe(steps=2)).finished


def test_where_there_are_no_locks_training_says_so(recipe, monkeypatch, capsys):
    def refused(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refused)
    assert train(recipe(steps=1)).finished
    said = " ".join(capsys.readouterr().err.split())
    assert "run lies on a file system without locks: nothing keeps a second krakenlm" in said


def test_the_history_can_be_read_while_the_run_lasts(recipe, monkeypatch):
    monkeypatch.setattr(callbacks, "_SECONDS_BETWEEN_HISTORIES", 0.0)
    run = RunFolder(recipe().output)
    seen = []
    at_step(monkeypatch, 6, lambda: seen.append(json.loads(run.history.read_text())))
    train(recipe(steps=8))
    assert [entry["step"] for entry in seen[0]["training"]] == [1, 2, 3, 4, 5]
    assert seen[0]["speed"]["tokens_per_second"] > 0
    assert seen[0]["speed"]["seconds_left"] > 0
    assert "mfu" not in seen[0]["speed"]  # nobody knows what this CPU could do


def test_tensorboard_gets_its_files(recipe):
    pytest.importorskip("tensorboard")
    run = train(recipe(steps=2, tensorboard=True))
    assert list(run.checkpoints.rglob("events.out.tfevents.*"))
    assert run.last_checkpoint() is None and run.finished
