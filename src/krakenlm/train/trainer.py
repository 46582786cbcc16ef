"""Training with Hugging Face's Trainer: what it is told, and what it tells."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress, TaskID
from safetensors import SafetensorError, safe_open
from torch import nn
from torch.utils.data import Dataset
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.utils import logging as transformers_logging

import krakenlm  # noqa: F401  AutoConfig knows "kraken" from here on
from krakenlm.config import MODEL_TYPE, ModelConfig, count_parameters
from krakenlm.console import notes, progress_bar
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.data.tokens import Tokens, TokenSplit, open_split
from krakenlm.errors import KrakenError
from krakenlm.files import disk_errors, whole_directory, write_json
from krakenlm.train.recipe import Recipe, Training
from krakenlm.train.run_folder import RunFolder, step_of


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Consecutive windows of a token file, each a training sequence."""

    def __init__(self, tokens: Tokens, length: int) -> None:
        self._tokens = tokens
        self._length = length

    def __len__(self) -> int:
        return len(self._tokens) // self._length

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = index * self._length
        window = self._tokens[start : start + self._length].astype(np.int64)
        ids_T = torch.from_numpy(window)
        return {"input_ids": ids_T, "labels": ids_T}


def train(recipe: Recipe, *, restart: bool = False) -> RunFolder:
    """Train a model, or go on where an interrupted run stopped; a finished run is left alone.

    Raises:
        KrakenError: data and model do not fit, the folder belongs to another recipe, the disk is
            full, or the loss stopped being finite.
    """
    run = RunFolder(recipe.output)
    training_tokens = open_split(recipe.data, "train")
    validation_tokens = open_split(recipe.data, "validation")
    length = _sequence_length(recipe, training_tokens, validation_tokens)
    _check_machine(recipe.training)
    run.claim(recipe, training_tokens.manifest, restart=restart)
    if run.finished:
        notes.print(f"{run.path}: trained already, nothing to do")
        return run
    _introduce(recipe.model)
    transformers_logging.disable_progress_bar()  # ours shows the training, theirs each file
    transformers_logging.set_verbosity_error()  # it warns of the tied head that no file repeats
    display = _Display(recipe.model, recipe.training, length)
    with disk_errors(run.path), _tidy(run, display):
        trainer = _make_trainer(recipe, run, training_tokens, validation_tokens, length, display)
        checkpoint = run.last_checkpoint()
        if checkpoint is not None:
            _check_checkpoint(checkpoint, trainer.model)
            notes.print(f"going on from {checkpoint.name}")
        if checkpoint is not None and step_of(checkpoint) >= recipe.training.steps:
            trainer.restore(checkpoint)
        else:
            trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
        if not _evaluated_at(trainer, recipe.training.steps):
            trainer.evaluate()
        write_json(run.history, _history(trainer, recipe, length))
        with whole_directory(run.model, replace=True) as folder:
            trainer.model.config.use_cache = True  # Trainer turned it off for training
            trainer.save_model(str(folder))
            (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and not needed
    return run


def _make_trainer(
    recipe: Recipe,
    run: RunFolder,
    training_tokens: TokenSplit,
    validation_tokens: TokenSplit,
    length: int,
    display: "_Display",
) -> "_Trainer":
    settings = recipe.training
    torch.manual_seed(settings.seed)
    manifest = training_tokens.manifest
    config = AutoConfig.for_model(
        MODEL_TYPE,
        **recipe.model.to_dict(),
        bos_token_id=manifest.eos_id,
        eos_token_id=manifest.eos_id,
        pad_token_id=manifest.eos_id,
    )
    batches = settings.eval_batches * settings.batch_size
    model = AutoModelForCausalLM.from_config(config)
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    trainer = _Trainer(
        model=model,
        args=_arguments(settings, run.checkpoints),
        train_dataset=Windows(training_tokens.tokens, length),
        eval_dataset=Windows(validation_tokens.tokens[: batches * length], length),
        processing_class=load_tokenizer(recipe.data / "tokenizer"),
        callbacks=[_Marker(run, settings.keep_checkpoints), display],
    )
    trainer.remove_callback(PrinterCallback)  # the progress bar says it
    return trainer


def _arguments(settings: Training, output: Path) -> TrainingArguments:
    use_cpu = settings.device == "cpu" or not torch.cuda.is_available()
    evaluates = settings.eval_every > 0
    return TrainingArguments(
        output_dir=str(output),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.min_learning_rate_ratio},
        warmup_steps=settings.warmup_steps,
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.max_grad_norm,
        bf16=_uses_bfloat16(settings, use_cpu),
        use_cpu=use_cpu,
        torch_compile=settings.compile,
        seed=settings.seed,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.eval_every if evaluates else None,
        prediction_loss_only=True,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or settings.steps,
        report_to=["tensorboard"] if settings.tensorboard else [],
        remove_unused_columns=False,
        dataloader_pin_memory=not use_cpu,
        disable_tqdm=True,
    )


def _uses_bfloat16(settings: Training, use_cpu: bool) -> bool:
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    if not use_cpu:
        return torch.cuda.is_bf16_supported(including_emulation=False)
    capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class _Trainer(Trainer):  # type: ignore[misc]
    """Trainer that decays matrices and embeddings only, whatever the number of axes."""

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        return [
            name
            for name, _ in model.named_parameters()
            if name.endswith(".weight") and "norm" not in name.rsplit(".", 2)[-2]
        ]

    def restore(self, checkpoint: Path) -> None:
        """Take weights and history as they were; ``train`` would take one step more."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        self._load_from_checkpoint(str(checkpoint))

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        for name in ("loss", "eval_loss"):
            if not math.isfinite(logs.get(name, 0.0)):
                raise KrakenError(
                    f"step {self.state.global_step}: {name} is {logs[name]}: lower learning_rate "
                    "or lengthen warmup_steps; whole checkpoints are kept"
                )
        super().log(logs, *args, **kwargs)


class _Marker(TrainerCallback):  # type: ignore[misc]
    """Marks each checkpoint once Trainer has written all of it, and only then removes old ones."""

    def __init__(self, run: RunFolder, keep: int) -> None:
        self._run = run
        self._keep = keep

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._run.mark_complete(state.global_step)
        self._run.remove_old_checkpoints(self._keep)


class _Display(TrainerCallback):  # type: ignore[misc]
    """The progress bar: loss, tokens per second, time left."""

    def __init__(self, model: ModelConfig, settings: Training, length: int) -> None:
        self._label = model.wiring
        self._tokens_per_step = settings.sequences_per_step * length
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._started_at = (0, 0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._progress = progress_bar("loss {task.fields[loss]}", "{task.fields[speed]} tokens/s")
        self._task = self._progress.add_task(
            f"training {self._label}",
            total=state.max_steps,
            completed=state.global_step,
            loss="-",
            speed="-",
        )
        self._started_at = (state.global_step, time.perf_counter())
        self._progress.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        assert self._progress is not None
        step, since = self._started_at
        tokens = (state.global_step - step) * self._tokens_per_step
        speed = f"{tokens / (time.perf_counter() - since):,.0f}"
        self._progress.update(self._task, completed=state.global_step, speed=speed)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        loss = (kwargs.get("logs") or {}).get("loss")
        if loss is not None and self._progress is not None:
            self._progress.update(self._task, loss=f"{loss:.3f}")

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.stop()

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


@contextmanager
def _tidy(run: RunFolder, display: _Display) -> Iterator[None]:
    """Begin and end without half-written checkpoints, however training ends."""
    run.remove_partial_checkpoints()
    try:
        yield
    finally:
        display.stop()
        run.remove_partial_checkpoints()


def _sequence_length(recipe: Recipe, training: TokenSplit, validation: TokenSplit) -> int:
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


def _check_machine(settings: Training) -> None:
    if settings.device == "cuda" and not torch.cuda.is_available():
        raise KrakenError("device='cuda': this machine has no GPU: use 'auto' or 'cpu'")
    if settings.tensorboard and find_spec("tensorboard") is None:
        raise KrakenError("tensorboard=true needs TensorBoard: pip install 'krakenlm[tensorboard]'")


def _check_checkpoint(checkpoint: Path, model: nn.Module) -> None:
    """Refuse a checkpoint that was damaged after it was written."""
    path = checkpoint / "model.safetensors"
    expected = {name: list(tensor.shape) for name, tensor in model.state_dict().items()}
    try:
        with safe_open(path, "pt") as file:
            found = {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
        wrong = [name for name, shape in found.items() if shape != expected.get(name)]
        problem = f"tensor {wrong[0]} does not fit the model" if wrong else ""
    except (OSError, SafetensorError) as error:
        problem = f"damaged or truncated, {error}"
    if problem:
        raise KrakenError(
            f"{path}: {problem}: remove {checkpoint} to go on from an earlier one, or begin anew "
            "with --restart"
        )


def _introduce(model: ModelConfig) -> None:
    notes.print(
        f"{model.wiring} model: {count_parameters(model):,} parameters, "
        f"{model.num_hidden_layers} layers, hidden_size {model.hidden_size}, "
        f"{model.num_sublayers} sub-layers"
    )


def _evaluated_at(trainer: _Trainer, step: int) -> bool:
    return any(
        "eval_loss" in entry and entry["step"] == step for entry in trainer.state.log_history
    )


def _history(trainer: _Trainer, recipe: Recipe, length: int) -> dict[str, Any]:
    """Losses over steps, with what is needed to put them on an axis of tokens."""
    log = trainer.state.log_history
    return {
        "tokens_per_step": recipe.training.sequences_per_step * length,
        "parameters": trainer.model.num_parameters(),
        "training": [{"step": e["step"], "loss": e["loss"]} for e in log if "loss" in e],
        "validation": [
            {"step": e["step"], "loss": e["eval_loss"]} for e in log if "eval_loss" in e
        ],
    }
