"""What is Hugging Face's Trainer told to do otherwise?

It decays matrices only, stops at a loss that is not finite, carries the running loss over an
interruption, divides weights with a sub-layer axis under FSDP, and computes each step with the N
that is drawn for it.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from torch.utils.data import Dataset
from transformers import Trainer, TrainerState

from krakenlm.console import print_note
from krakenlm.errors import DiskFullError, KrakenError
from krakenlm.files import disk_errors, write_json
from krakenlm.integrations.hf_trainer import Callback, OpenTrainer, RunningLoss
from krakenlm.overrides import changed, replaces
from krakenlm.strict import read_json
from krakenlm.train.degrees import Degrees
from krakenlm.train.history import History
from krakenlm.train.meter import Meter
from krakenlm.train.ranks import Ranks
from krakenlm.train.recipe import Training
from krakenlm.train.run_folder import RunFolder, step_of
from krakenlm.train.sharding import shard_blocks

_PROGRESS = "progress.json"


class LoopTrainer(OpenTrainer):
    """Trainer for one run.

    Args:
        run: its folder.
        ranks: the processes that train.
        meter: told when steps are done.
        settings: of the recipe: how long the schedule is, which checkpoints are kept.
        degrees: the N of each step.
        arguments: Trainer's own.
    """

    def __init__(
        self,
        run: RunFolder,
        ranks: Ranks,
        meter: Meter,
        settings: Training,
        degrees: Degrees,
        **arguments: Any,
    ) -> None:
        self._run = run
        self._ranks = ranks
        self._meter = meter
        self._settings = settings
        self._degrees = degrees
        self._first_bad = torch.tensor(-1)
        super().__init__(**arguments)

    @replaces(Trainer)
    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Divide the layers first where FSDP will divide the rest."""
        if self.is_fsdp_enabled and self.optimizer is None:
            shard_blocks(self.model if model is None else model, self.accelerator)
        optimizer: torch.optim.Optimizer = super().create_optimizer(model)
        return optimizer

    @replaces(Trainer)
    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> LRScheduler:
        """End the schedule before the last step where the run is longer, and stay there."""
        end = min(self._settings.scheduled_steps, num_training_steps)
        scheduler: LRScheduler = super().create_scheduler(end, optimizer)
        if end < num_training_steps:
            assert isinstance(scheduler, LambdaLR), (
                "transformers' schedules are functions of a step"
            )
            scheduler.lr_lambdas = [
                partial(_until, end, factor_at) for factor_at in scheduler.lr_lambdas
            ]
        return scheduler

    @replaces(Trainer)
    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Matrices and embeddings, whatever the number of axes."""
        return [
            name
            for name, _ in model.named_parameters()
            if name.endswith(".weight") and "norm" not in name.rsplit(".", 2)[-2]
        ]

    @replaces(Trainer)
    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Compute with the step's N; remember the first step whose loss is not finite.

        That is without waiting for the device.
        """
        self._ranks.activity(f"training, in step {self.state.global_step + 1}")
        self._compute_with(self._degrees.at(self.state.global_step))
        loss: Tensor = super().training_step(model, inputs, num_items_in_batch)
        first = self._first_bad.to(loss.device)
        bad = ~torch.isfinite(loss) & (first < 0)
        self._first_bad = torch.where(bad, self.state.global_step + 1, first)
        return loss

    @replaces(Trainer)
    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Refuse a loss that is not finite; add speed to what is logged."""
        losses = {name: value for name, value in logs.items() if name.endswith("loss")}
        if not losses:
            raise changed(f"transformers.Trainer logs {', '.join(logs)} and no loss")
        for name, loss in losses.items():
            if not math.isfinite(loss):
                raise self._diverged(name, loss)
        if "loss" in logs:
            self._meter.mark(self.state.global_step)
            summary = self._meter.summary()
            logs |= {key: summary[key] for key in ("tokens_per_second", "mfu") if key in summary}
        super().log(logs, start_time)

    @replaces(Trainer)
    def evaluate(
        self,
        eval_dataset: Dataset[Any] | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """As Trainer does, with the clock stopped; where N is drawn, with each N."""
        with self._meter.paused():
            for n in self._degrees.others:
                self._compute_with(n)
                super().evaluate(eval_dataset, ignore_keys, self._degrees.evaluation(n))
            self._compute_with(self._degrees.own)
            found: dict[str, float] = super().evaluate(eval_dataset, ignore_keys, metric_key_prefix)
            return found

    def restore(self, checkpoint: Path) -> None:
        """Take weights and history as they were; ``train`` would take one step more."""
        self.state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        # From here on every process holds the whole model, to evaluate and save it.
        self.stop_sharding()
        self.model.load_state_dict(load_file(checkpoint / "model.safetensors"), strict=False)
        self._meter.begin(self.state.global_step, _progress(checkpoint)["seconds"])

    def go_on_from(self, checkpoint: Path, history: History | None) -> None:
        """Before ``train`` resumes: have it carry on the loss that was not logged yet.

        Args:
            checkpoint: that it resumes from.
            history: of the run, which has the loss that a finished run was measured at last.
        """
        validation = [] if history is None else history.validation_log(self._degrees)
        self.add_callback(_CarryOn(self, _progress(checkpoint), validation))

    @contextmanager
    def saving_checkpoint(self) -> Iterator[None]:
        """Refuse to save weights that are beyond help; also save what Trainer forgets.

        A checkpoint is marked once all processes have written theirs, and only then are old ones
        removed.
        """
        self._ranks.activity("saving a checkpoint")
        step = self.state.global_step
        with self._meter.paused():
            if self._ranks.any(not self._is_sound()):
                raise self._diverged("loss" if int(self._first_bad) >= 0 else "a weight", math.nan)
            running = self.running_loss
            progress = {
                "running_losses": self._gathered(running.total),
                "logged_at": running.logged_at,
                "seconds": self._meter.seconds,
            }
            refused: list[str] = []
            with self._room(refused):
                yield
                if self._ranks.is_main:
                    write_json(self._run.checkpoints / f"checkpoint-{step}" / _PROGRESS, progress)
            if not self._ranks.any(bool(refused)) and self._ranks.is_main:
                with self._room(refused):
                    self._run.mark_complete(step)
            is_missing = self._ranks.any(bool(refused))
            if self._ranks.is_main and not is_missing:
                self._run.remove_old_checkpoints(self._settings.keep_checkpoints)
            elif self._ranks.is_main:
                self._run.remove_partial_checkpoints()
                why = refused[0] if refused else "another process found no room"
                print_note(f"step {step}: {why}; training goes on without this checkpoint")

    def with_room(self, write: Callable[[], object]) -> None:
        """Write something, or leave it out where the disk is full and the recipe says so."""
        with self._room([]):
            write()

    @contextmanager
    def _room(self, refused: list[str]) -> Iterator[None]:
        """Where the recipe says so, put a full disk down here instead of ending."""
        try:
            with disk_errors(self._run.path):
                yield
        except DiskFullError as error:
            if self._settings.on_full_disk == "stop":
                raise
            refused.append(str(error))  # not the error: it keeps files open

    def tensors_to_save(self, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """Leave out the tied head, of which FSDP makes a copy."""
        if state and self.model.config.tie_word_embeddings:
            return {name: value for name, value in state.items() if name != "lm_head.weight"}
        return state

    def _compute_with(self, n: int) -> None:
        self.model.model.degree = n

    def _gathered(self, value: Tensor) -> list[float]:
        """A scalar of each process."""
        found: list[float] = self.accelerator.gather(value.reshape(1)).tolist()
        return found

    def _is_sound(self) -> bool:
        """Whether this process's losses so far and weights are finite."""
        shares = [_local(parameter.detach()) for parameter in self.model.parameters()]
        finite = torch.stack([share.isfinite().all() for share in shares])
        return bool(finite.all()) and int(self._first_bad) < 0

    def _diverged(self, name: str, value: float) -> KrakenError:
        """What to tell the user; every process comes here at once."""
        firsts = map(int, self._gathered(self._first_bad.to(self.args.device)))
        step = min((first for first in firsts if first >= 0), default=self.state.global_step)
        checkpoint = self._run.last_checkpoint()
        kept = (
            "there is no checkpoint before it"
            if checkpoint is None
            else f"the last good checkpoint is {checkpoint} (step {step_of(checkpoint)})"
        )
        return KrakenError(
            f"step {step}: {name} is {value}: lower learning_rate or lengthen warmup_steps; {kept}"
        )


class _CarryOn(Callback):
    """Puts back what a checkpoint has of the mean loss since the last log, and what it lacks."""

    def __init__(
        self,
        trainer: LoopTrainer,
        progress: dict[str, Any],
        validation: Sequence[dict[str, Any]],
    ) -> None:
        self._trainer = trainer
        self._progress = progress
        self._validation = validation

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        losses = self._progress["running_losses"]
        same = len(losses) == args.world_size  # otherwise each takes the mean
        own = losses[args.process_index] if same else sum(losses) / len(losses)
        self._trainer.running_loss = RunningLoss(
            torch.tensor(own, device=args.device), int(self._progress["logged_at"])
        )
        logged = state.log_history
        known = {(name, entry["step"]) for entry in logged for name in entry.keys() - {"step"}}
        logged += [
            entry
            for entry in self._validation
            if entry["step"] <= state.global_step
            and known.isdisjoint((name, entry["step"]) for name in entry)
        ]


def _until(end: int, factor_at: Callable[[int], float], step: int) -> float:
    """A schedule's factor, which stays what it is at its end."""
    return factor_at(min(step, end))


def seconds_before(checkpoint: Path | None) -> float:
    """How long training took up to a checkpoint; 0 where it begins anew."""
    return 0.0 if checkpoint is None else float(_progress(checkpoint)["seconds"])


def _progress(checkpoint: Path) -> dict[str, Any]:
    """What ``_save_checkpoint`` added to a checkpoint."""
    path = checkpoint / _PROGRESS
    advice = f"remove {checkpoint} to go on from an earlier one, or begin anew with --restart"
    try:
        found: dict[str, Any] = read_json(path, advice)
    except FileNotFoundError as error:
        raise KrakenError(f"{path} is missing: {advice}") from error
    return found


def _local(value: Tensor) -> Tensor:
    """This process's share of a weight that FSDP may have divided."""
    return value.to_local() if hasattr(value, "to_local") else value
