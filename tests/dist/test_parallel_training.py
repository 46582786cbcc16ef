"""Training on two processes over gloo: the losses are those of one process."""

import json
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file

import tiny
from forked import Forked
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.train.recipe import read_recipe
from krakenlm.train.run_folder import RunFolder
from krakenlm.train.trainer import train

pytestmark = [
    pytest.mark.dist,
    pytest.mark.skipif(torch.cuda.is_available(), reason="FSDP would take the GPU"),
]

# One sub-layer, so that FSDP cannot divide along it; and several sequences on each process.
STANDARD = (
    "wiring = 'standard'\nnum_sublayers = 1\nhidden_size = 16\nnum_hidden_layers = 2\n"
    f"heads_per_sublayer = 2\nmax_position_embeddings = {tiny.CONTEXT}\n"
)
# Another N at each step: both processes have to draw the same.
DRAWN = (
    "wiring = 'shared'\nnum_sublayers = 4\nhidden_size = 16\nnum_hidden_layers = 2\n"
    f"heads_per_sublayer = 1\nffn_dim = 16\nmax_position_embeddings = {tiny.CONTEXT}\n"
)
SETTINGS = {
    "steps": 6,
    "gradient_accumulation": 4,
    "save_every": 3,
    "eval_every": 3,
    "eval_batches": 2,
}


BETWEEN_CPUS = Path(__file__).with_name("fsdp_between_cpus.py")


class Ended(NamedTuple):
    """What became of two processes, and what they said together."""

    code: int | None
    said: str


def together(folder: Path, *arguments: object, program: Path | None = BETWEEN_CPUS) -> Ended:
    """A command on two processes; ``krakenlm``, which here may divide a model between CPUs."""
    (folder / "log.txt").unlink(missing_ok=True)
    processes = Forked(folder, 2, list(map(str, arguments)), program)
    try:
        code = processes.wait(300)
    finally:
        processes.stop()
    return Ended(code, (folder / "log.txt").read_text())


def write(folder: Path, data: Path, output: str, model: str, **changes: object) -> Path:
    path = folder / f"{output}.toml"
    if model == DRAWN:
        changes["sublayers"] = [1, 2, 4]
    text = tiny.recipe_text(data, folder / output, model=model, **{**SETTINGS, **changes})
    path.write_text(text)
    return path


def alone(folder: Path, data: Path, model: str) -> RunFolder:
    return train(read_recipe(write(folder, data, "alone", model), lambda _: tiny.VOCABULARY))


def assert_same_losses(found: list[dict], expected: list[dict]) -> None:
    assert [e["step"] for e in found] == [e["step"] for e in expected]
    losses = [e["loss"] for e in expected]
    assert [e["loss"] for e in found] == pytest.approx(losses, rel=1e-5)


def assert_same(run: RunFolder, other: RunFolder) -> None:
    """Up to the order in which numbers are added."""
    found, expected = (json.loads(each.history.read_text()) for each in (run, other))
    assert found["tokens_per_step"] == expected["tokens_per_step"]
    for part in ("training", "validation"):
        assert_same_losses(found[part], expected[part])
    of_each = "validation_by_sublayers"
    assert found[of_each].keys() == expected[of_each].keys()
    for n, losses in expected[of_each].items():
        assert_same_losses(found[of_each][n], losses)
    weights, others = (load_file(each.model / "model.safetensors") for each in (run, other))
    assert weights.keys() == others.keys()
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=1e-4, msg=name)
    files = [sorted(path.name for path in each.model.iterdir()) for each in (run, other)]
    assert files[0] == files[1]
    assert sorted(path.name for path in run.checkpoints.iterdir()) == [
        "checkpoint-3",
        "checkpoint-6",
    ]
    assert run.last_checkpoint().name == "checkpoint-6"


@pytest.mark.parametrize(
    ("parallel", "model"),
    [("ddp", DRAWN), ("fsdp", STANDARD), pytest.param("fsdp", DRAWN, marks=pytest.mark.slow)],
)
def test_two_processes_learn_what_one_learns(tmp_path, tiny_data, parallel, model):
    path = write(tmp_path, tiny_data, "both", model, parallel=parallel)
    ended = together(tmp_path, "train", path)
    assert ended.code == 0, ended.said
    assert ended.said.endswith(f"\n{tmp_path / 'both' / 'model'}\n")
    assert ended.said.count("parameters, 2 layers") == 1  # one process speaks
    both = RunFolder(tmp_path / "both")
    assert_same(both, alone(tmp_path, tiny_data, model))
    resolved = json.loads((both.path / "recipe.json").read_text())
    assert resolved["training"]["parallel"] == parallel
    divided = both.last_checkpoint() / "pytorch_model_fsdp.bin"
    assert divided.exists() == (parallel == "fsdp")


@pytest.fixture
def teacher(tmp_path: Path, tiny_data: Path) -> Path:
    """A model whose sums are awaited, with rotary positions and the data's tokenizer."""
    folder = tmp_path / "teacher"
    torch.manual_seed(0)
    config = tiny.model_config(
        wiring="standard", num_sublayers=1, position="rope", initializer_range=0.3
    )
    KrakenForCausalLM(KrakenConfig.from_model_config(config)).save_pretrained(folder)
    load_tokenizer(tiny_data).save_pretrained(folder)
    return folder


def adapting(folder: Path, data: Path, output: str, teacher: Path, **changes: object) -> Path:
    """A recipe whose second layer becomes late, and first learns what the teacher's adds."""
    model = (
        "wiring = 'shared'\nnum_sublayers = 2\nhidden_size = 16\nnum_hidden_layers = 2\n"
        "heads_per_sublayer = 1\nhead_dim = 8\nffn_dim = 32\nposition = 'rope'\n"
        f"initializer_range = 0.3\nlate_layers = '1'\nmax_position_embeddings = {tiny.CONTEXT}\n"
    )
    path = write(folder, data, output, model, **changes)
    path.write_text(f'{path.read_text()}[adapt]\nteacher = "{teacher}"\nlayerwise_steps = 2\n')
    return path


def test_two_processes_adapt_as_one_does(tmp_path, tiny_data, teacher):
    ended = together(tmp_path, "train", adapting(tmp_path, tiny_data, "both", teacher))
    assert ended.code == 0, ended.said
    path = adapting(tmp_path, tiny_data, "alone", teacher)
    assert_same(RunFolder(tmp_path / "both"), train(read_recipe(path, lambda _: tiny.VOCABULARY)))


def test_weights_that_a_teacher_shares_cannot_be_divided(tmp_path, tiny_data, teacher):
    path = adapting(tmp_path, tiny_data, "both", teacher, parallel="fsdp")
    ended = together(tmp_path, "train", path)
    refusals = [line for line in ended.said.splitlines() if line.startswith("krakenlm:")]
    assert ended.code != 0 and len(refusals) == 1, ended.said
    assert "cannot divide weights that a model and its teacher share" in refusals[0]
    assert not (tmp_path / "both").exists()


def test_fsdp_between_cpus_is_refused_in_one_line(tmp_path, tiny_data):
    path = write(tmp_path, tiny_data, "both", STANDARD, parallel="fsdp")
    ended = together(tmp_path, "train", path, program=None)
    assert ended.code != 0
    refusals = [line for line in ended.said.splitlines() if line.startswith("krakenlm:")]
    assert len(refusals) == 1
    assert "divides a model between GPUs" in refusals[0] and "parallel='ddp'" in refusals[0]
    assert not (tmp_path / "both").exists()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("parallel", "model"), [("ddp", ""), ("ddp", DRAWN), ("fsdp", STANDARD), ("fsdp", "")]
)
@pytest.mark.parametrize("last", [3, 6])
def test_two_processes_go_on_where_they_stopped(tmp_path, tiny_data, parallel, model, last):
    path = write(tmp_path, tiny_data, "both", model, parallel=parallel)
    assert together(tmp_path, "train", path).code == 0
    both = RunFolder(tmp_path / "both")
    shutil.rmtree(both.model)
    if last == 3:
        shutil.rmtree(both.checkpoints / "checkpoint-6")
    ended = together(tmp_path, "train", path)
    assert ended.code == 0, ended.said
    assert f"going on from checkpoint-{last}" in ended.said
    assert_same(both, alone(tmp_path, tiny_data, model))


@pytest.mark.slow
def test_a_refusal_ends_both_processes(tmp_path, tiny_data):
    path = write(tmp_path, tiny_data, "both", "", batch_size=3, gradient_accumulation=1)
    ended = together(tmp_path, "train", path)
    assert ended.code != 0
    assert ended.said.count("cannot be divided among 2 processes") == 1
    assert not (tmp_path / "both").exists()


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_weight_without_an_axis_of_equal_shares(tmp_path, tiny_data, parallel):
    """Nothing of 3 sub-layers, 15 wide, halves evenly: FSDP pads, and the numbers are the same."""
    model = (
        "num_sublayers = 3\nhidden_size = 15\nnum_hidden_layers = 2\nheads_per_sublayer = 1\n"
        f"ffn_dim = 15\nmax_position_embeddings = {tiny.CONTEXT}\n"
    )
    path = write(tmp_path, tiny_data, "both", model, parallel=parallel)
    ended = together(tmp_path, "train", path)
    assert ended.code == 0, ended.said
    assert_same(RunFolder(tmp_path / "both"), alone(tmp_path, tiny_data, model))
