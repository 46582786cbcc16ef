"""Do recipe, data, machine and checkpoint fit each other? Asked before anything is written."""

import os
import stat
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import nn

from krakenlm.data.tokens import TokenSplit
from krakenlm.errors import KrakenError
from krakenlm.model.tensor_files import open_tensors
from krakenlm.train.recipe import Recipe, Training


def sequence_length(recipe: Recipe, training: TokenSplit, validation: TokenSplit) -> int:
    """Tokens of a training sequence.

    Raises:
        KrakenError: model and data do not fit.
    """
    context, vocabulary = recipe.model.max_position_embeddings, recipe.model.vocab_size
    length = recipe.training.sequence_length or context
    if length > context:
        raise KrakenError(
            f"sequence_length={length} is above max_position_embeddings={context}: lower it"
        )
    if training.manifest.vocab_size > vocabulary:
        raise KrakenError(
            f"{recipe.data} has tokens up to {training.manifest.vocab_size - 1} and the model a "
            f"vocab_size of {vocabulary}: leave vocab_size out of the recipe or raise it"
        )
    for split in (training, validation):
        if len(split.tokens) < length:
            raise KrakenError(
                f"{split.path} holds {len(split.tokens)} tokens, fewer than one sequence of "
                f"{length}: prepare more text or lower sequence_length"
            )
    return length


def check_machine(settings: Training) -> None:
    """Refuse what this machine or this environment does not have."""
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise KrakenError("device='cuda': this machine has no GPU: use 'auto' or 'cpu'")
    if settings.tensorboard and find_spec("tensorboard") is None:
        raise KrakenError("tensorboard=true needs TensorBoard: pip install 'krakenlm[tensorboard]'")
    if settings.wandb and find_spec("wandb") is None:
        raise KrakenError("wandb=true needs Weights & Biases: pip install 'krakenlm[wandb]'")


def check_sharding(settings: Training, ranks: int, *, use_cpu: bool) -> None:
    """Refuse to divide a model between CPUs, or to leave out a process's part of a save.

    accelerate would pass over the first without a word; in the second, the others would wait.
    """
    if settings.parallel == "fsdp" and ranks > 1 and use_cpu:
        raise KrakenError(
            "parallel='fsdp' divides a model between GPUs, and this run is on CPUs: use "
            "parallel='ddp', where each process holds the whole model, or start one process"
        )

    if settings.parallel == "fsdp" and ranks > 1 and settings.on_full_disk == "go-on":
        raise KrakenError(
            "on_full_disk='go-on' does not work with parallel='fsdp', where all processes write "
            "each checkpoint together: use 'stop' or parallel='ddp'"
        )


def check_adaptation(settings: Training, ranks: int) -> None:
    """Refuse what an adapted model, which shares weights with its teacher, cannot do."""
    if settings.parallel == "fsdp" and ranks > 1:
        raise KrakenError(
            "parallel='fsdp' cannot divide weights that a model and its teacher share: use "
            "parallel='ddp'"
        )


def check_checkpoint(checkpoint: Path, model: nn.Module) -> None:
    """Refuse a checkpoint that was damaged after it was written."""
    path = checkpoint / "model.safetensors"
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    advice = f"remove {checkpoint} to go on from an earlier one, or begin anew with --restart"
    file = open_tensors(path, advice)
    for name in file.keys():  # noqa: SIM118
        if file.get_slice(name).get_shape() != expected.get(name):
            raise KrakenError(f"{path}: tensor {name} does not fit the model: {advice}")


def check_owner(checkpoint: Path) -> None:
    """Refuse files that may run code when they are read, where somebody else could write them.

    Raises:
        KrakenError: the checkpoint or a file of it is another user's, or others may write to it.
    """
    for path in (checkpoint, *sorted(checkpoint.iterdir())):
        status = path.lstat()
        others = status.st_mode & stat.S_IWOTH
        others |= status.st_mode & stat.S_IWGRP if status.st_gid != os.getegid() else 0
        if status.st_uid == os.geteuid() and not others:
            continue
        whose = "others may write to it" if others else f"it belongs to user {status.st_uid}"
        raise KrakenError(
            f"{path}: {whose}, and going on reads files that may run code: make the run's folder "
            "your own with chown and chmod if you trust it, or begin anew with --restart"
        )
