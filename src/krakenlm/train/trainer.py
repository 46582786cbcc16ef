"""Training with Hugging Face's Trainer: a recipe becomes a run, a run becomes a model."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import PrinterCallback, TrainingArguments
from transformers.utils import logging as transformers_logging

from krakenlm.config import count_parameters, training_flops_per_token
from krakenlm.console import notes
from krakenlm.data.same_tokenizer import check_model_tokenizer, check_own_tokenizer
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.data.tokens import Tokens, TokenSplit, open_split
from krakenlm.ending import EXIT_BY_SIGTERM
from krakenlm.errors import KrakenError, trying
from krakenlm.files import disk_errors, whole_directory, write_json
from krakenlm.integrations.hf_trainer import let_compile, use_one_gpu
from krakenlm.integrations.rewiring import carry_over, lay_out
from krakenlm.model.checkpoint import stored_dtype
from krakenlm.ranks.cores import keep_freed_memory
from krakenlm.ranks.devices import has_bfloat16
from krakenlm.ranks.failures import REPORT
from krakenlm.train.callbacks import Display, LiveHistory, Termination
from krakenlm.train.checks import (
    check_adaptation,
    check_checkpoint,
    check_machine,
    check_owner,
    check_sharding,
    sequence_length,
)
from krakenlm.train.degrees import Degrees
from krakenlm.train.distillation import DistillingTrainer
from krakenlm.train.history import History
from krakenlm.train.loop import LoopTrainer, seconds_before
from krakenlm.train.meter import Meter, peak_flops_here
from krakenlm.train.models import check_teacher, start_model, teacher_of
from krakenlm.train.ranks import Ranks, joined, share
from krakenlm.train.recipe import Recipe, Training
from krakenlm.train.run_folder import RunFolder, step_of
from krakenlm.train.sharding import fsdp_settings

# With each N: training and evaluation, on whole batches and on the last one.
_VERSIONS_COMPILED = 4
_LESS = "if memory is short, lower batch_size and raise gradient_accumulation; else " + REPORT


class Windows(Dataset[dict[str, torch.Tensor]]):
    """Consecutive windows of a split's tokens, each a training sequence.

    Args:
        tokens: one-dimensional; a slice of them is an array.
        length: of a window.
        limit: windows at most; 0 is all.
    """

    def __init__(self, tokens: Tokens, length: int, limit: int = 0) -> None:
        self._tokens = tokens
        self._length = length
        whole = len(tokens) // length
        self._count = min(whole, limit) if limit else whole

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        start = index * self._length
        window = self._tokens[start : start + self._length]
        ids_T = torch.from_numpy(np.asarray(window, dtype=np.int64))
        return {"input_ids": ids_T, "labels": ids_T}


def train(
    recipe: Recipe,
    *,
    restart: bool = False,
    extend: bool = False,
    other_tokenizer: bool = False,
) -> RunFolder:
    """Train a model, or go on where an interrupted run stopped; a finished run is left alone.

    With ``extend`` the recipe may have more steps than the run in its folder had. The steps it had
    keep their learning rates, and those that are added have the one that the schedule ended at.

    Under torchrun or ``accelerate launch`` all processes train together. On SIGTERM the step is
    finished, a checkpoint saved, and the process ends with code 143.

    The model gets the data folder's tokenizer; with ``other_tokenizer`` also one that did not make
    the tokens.

    Raises:
        KrakenError: data and model do not fit, the folder belongs to another recipe or is in use,
            the disk is full, the loss stopped being finite, or there is no run to extend.
    """
    run = RunFolder(recipe.output)
    with joined(_use_cpu(recipe.training)) as ranks:
        claim = partial(_claim, restart=restart, extend=extend, other_tokenizer=other_tokenizer)
        recipe = ranks.first(partial(claim, run, recipe, ranks.count))
        if run.finished:
            if ranks.is_main:
                notes.print(f"{run.path}: trained already, nothing to do")
            return run
        if ranks.is_main:
            _introduce(recipe)
        transformers_logging.disable_progress_bar()  # ours shows the training, theirs each file
        held = run.held() if ranks.is_main else nullcontext()
        with held, trying("training", _LESS):
            _train(recipe, run, ranks)
    return run


def _claim(
    run: RunFolder,
    recipe: Recipe,
    ranks: int,
    *,
    restart: bool,
    extend: bool,
    other_tokenizer: bool,
) -> Recipe:
    """Check everything that can be checked, then take the folder; the recipe to follow."""
    if restart and extend:
        raise KrakenError("--extend goes on with a run and --restart discards it: give one of them")
    training, validation = (open_split(recipe.data, split) for split in ("train", "validation"))
    sequence_length(recipe, training, validation)
    check_own_tokenizer(recipe.data, training.manifest, insist=other_tokenizer)
    check_machine(recipe.training)
    if recipe.adapt is not None:
        check_teacher(recipe.adapt, recipe.model)
        check_adaptation(recipe.training, ranks)
        check_model_tokenizer(
            recipe.data, training.manifest, recipe.adapt.teacher, insist=other_tokenizer
        )
    check_sharding(recipe.training, ranks, use_cpu=_use_cpu(recipe.training))
    share(recipe.training.batch_size, recipe.training.gradient_accumulation, ranks)
    recipe = run.claim(recipe, training.manifest, restart=restart, extend=extend)
    if not run.finished:
        run.remove_partial_checkpoints()
    return recipe


def _train(recipe: Recipe, run: RunFolder, ranks: Ranks) -> None:
    # What ``_claim`` has compared with its sums is not read through again.
    training, validation = (
        open_split(recipe.data, split, verify=False) for split in ("train", "validation")
    )
    length = sequence_length(recipe, training, validation)
    meter = _meter(recipe, length, ranks)
    display = Display(recipe.model.wiring, meter, Degrees.of(recipe))
    termination = Termination(ranks)
    with _tidy(run, ranks, display):
        trainer = _make_trainer(recipe, run, ranks, training, validation, length, meter)
        trainer.add_callback(termination)
        write_history = partial(_write_history, trainer, recipe, run, length, meter)
        if ranks.is_main:
            trainer.add_callback(display)
            trainer.add_callback(LiveHistory(partial(trainer.with_room, write_history)))
        _learn(trainer, recipe, run, ranks, meter, termination)
        if not _evaluated_at(trainer, recipe.training.steps):
            trainer.evaluate()
        if ranks.is_main:
            write_history()
        _save_model(trainer, recipe, run, ranks)


def _learn(
    trainer: LoopTrainer,
    recipe: Recipe,
    run: RunFolder,
    ranks: Ranks,
    meter: Meter,
    termination: Termination,
) -> None:
    """Take the steps that are left."""
    checkpoint = run.last_checkpoint()
    if checkpoint is not None:
        ranks.first(partial(check_owner, checkpoint))
        ranks.first(partial(check_checkpoint, checkpoint, trainer.model))
        if ranks.is_main:
            notes.print(f"going on from {checkpoint.name}")
        if step_of(checkpoint) >= recipe.training.steps:
            trainer.restore(checkpoint)
            return
        trainer.go_on_from(checkpoint, History.load(run.history))
    done = 0 if checkpoint is None else step_of(checkpoint)
    with termination.watching():
        meter.begin(done, seconds_before(checkpoint))
        trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    if termination.stopped:
        if ranks.is_main:
            step = trainer.state.global_step
            notes.print(f"stopped after step {step}, saved: the same command goes on from there")
        sys.exit(EXIT_BY_SIGTERM)


def _make_trainer(
    recipe: Recipe,
    run: RunFolder,
    ranks: Ranks,
    training: TokenSplit,
    validation: TokenSplit,
    length: int,
    meter: Meter,
) -> LoopTrainer:
    settings, degrees = recipe.training, Degrees.of(recipe)
    if _use_cpu(settings):
        keep_freed_memory()
    if settings.compile:
        let_compile(_VERSIONS_COMPILED * len(degrees.drawn_from))
    model = start_model(recipe, training.manifest)
    make: Callable[..., LoopTrainer] = LoopTrainer
    if recipe.adapt is not None:
        make = partial(DistillingTrainer, teacher_of(model), recipe.adapt)
    trainer = make(
        run=run,
        ranks=ranks,
        meter=meter,
        settings=settings,
        degrees=degrees,
        model=model,
        args=_arguments(settings, run.checkpoints, ranks, model),
        train_dataset=Windows(training.tokens, length),
        eval_dataset=Windows(
            validation.tokens, length, limit=settings.eval_batches * settings.batch_size
        ),
        processing_class=load_tokenizer(recipe.data / "tokenizer"),
    )
    trainer.remove_callback(PrinterCallback)  # the progress bar says it
    return trainer


def _arguments(
    settings: Training, output: Path, ranks: Ranks, model: nn.Module
) -> TrainingArguments:
    use_cpu = _use_cpu(settings)
    evaluates = settings.eval_every > 0
    batch_size, accumulation = share(
        settings.batch_size, settings.gradient_accumulation, ranks.count
    )
    shards = settings.parallel == "fsdp" and ranks.count > 1
    reports = [name for name in ("tensorboard", "wandb") if getattr(settings, name)]
    arguments = TrainingArguments(
        output_dir=str(output),
        run_name=output.parent.name,
        max_steps=settings.steps,
        per_device_train_batch_size=batch_size,
        per_device_eval_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": settings.min_learning_rate_ratio},
        warmup_steps=settings.warmup_steps,
        optim="adamw_torch_fused",
        weight_decay=settings.weight_decay,
        adam_beta1=settings.beta1,
        adam_beta2=settings.beta2,
        max_grad_norm=settings.max_grad_norm,
        bf16=_uses_bfloat16(settings, use_cpu),
        use_cpu=use_cpu,
        ddp_find_unused_parameters=False,
        fsdp=shards,
        fsdp_config=fsdp_settings(model, ranks.count) if shards else None,
        torch_compile=settings.compile,
        seed=settings.seed,
        logging_steps=settings.log_every,
        logging_nan_inf_filter=False,
        eval_strategy="steps" if evaluates else "no",
        eval_steps=settings.eval_every if evaluates else None,
        prediction_loss_only=True,
        save_strategy="steps" if settings.save_every else "no",
        save_steps=settings.save_every or settings.steps,
        report_to=reports,
        remove_unused_columns=False,
        dataloader_pin_memory=not use_cpu,
        disable_tqdm=True,
    )
    if ranks.count == 1:
        use_one_gpu(arguments)
    return arguments


def _use_cpu(settings: Training) -> bool:
    return settings.device == "cpu" or not torch.cuda.is_available()


def _uses_bfloat16(settings: Training, use_cpu: bool) -> bool:
    if settings.precision != "auto":
        return settings.precision == "bfloat16"
    return has_bfloat16(torch.device("cpu" if use_cpu else "cuda"))


def _meter(recipe: Recipe, length: int, ranks: Ranks) -> Meter:
    settings = recipe.training
    use_cpu = _use_cpu(settings)
    peak = peak_flops_here(use_cpu=use_cpu, bfloat16=_uses_bfloat16(settings, use_cpu))
    return Meter(
        settings.sequences_per_step * length,
        training_flops_per_token(recipe.model, length),
        settings.steps,
        None if peak is None else peak * ranks.count,
    )


@contextmanager
def _tidy(run: RunFolder, ranks: Ranks, display: Display) -> Iterator[None]:
    """End without half-written checkpoints, however training ends."""
    try:
        with disk_errors(run.path):  # it may ask the disk, where these checkpoints still lie
            yield
    finally:
        display.stop()
        if ranks.is_main:
            run.remove_partial_checkpoints()


def _introduce(recipe: Recipe) -> None:
    model, settings = recipe.model, recipe.training
    notes.print(
        f"{model.wiring} model: {count_parameters(model):,} parameters, "
        f"{model.num_hidden_layers} layers, hidden_size {model.hidden_size}, "
        f"{model.num_sublayers} sub-layers"
    )
    if settings.sublayers is not None:
        numbers = ", ".join(map(str, settings.sublayers))
        first = settings.own_sublayers_steps
        when = f"after step {first} each" if first else "each"
        notes.print(
            f"{when} step draws its N from {numbers}; the validation loss is taken with each, and "
            f"`compare` shows that of {model.num_sublayers}"
        )
    if settings.scheduled_steps < settings.steps:
        notes.print(
            f"after step {settings.scheduled_steps} of {settings.steps} the learning rate stays at "
            f"{settings.last_learning_rate:g}"
        )


def _evaluated_at(trainer: LoopTrainer, step: int) -> bool:
    return any(
        "eval_loss" in entry and entry["step"] == step for entry in trainer.state.log_history
    )


def _write_history(
    trainer: LoopTrainer, recipe: Recipe, run: RunFolder, length: int, meter: Meter
) -> None:
    history = History.of_log(
        trainer.state.log_history,
        Degrees.of(recipe),
        tokens_per_step=recipe.training.sequences_per_step * length,
        parameters=count_parameters(recipe.model),
        speed=meter.summary(),
    )
    write_json(run.history, history.to_dict())


def _save_model(trainer: LoopTrainer, recipe: Recipe, run: RunFolder, ranks: Ranks) -> None:
    """Write the finished model; under FSDP every process hands in its part."""
    trainer.model.config.use_cache = True  # Trainer turned it off for training
    if not ranks.is_main:
        trainer.save_model(str(run.model))  # writes nothing
        return
    with whole_directory(run.model, replace=True) as folder:
        trainer.save_model(str(folder))
        (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle, and not needed
        kept = None if recipe.adapt is None else stored_dtype(recipe.adapt.teacher)
        lay_out(folder, recipe.model.num_sublayers, kept)
        if recipe.adapt is not None:
            carry_over(recipe.adapt.teacher, folder)
