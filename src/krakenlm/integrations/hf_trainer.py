"""What of training depends on the version or the insides of Transformers and accelerate.

The models have the same in ``krakenlm.integrations.hf_compat``.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import (
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from krakenlm.overrides import changed, replaces, require_attributes

if TYPE_CHECKING:
    from accelerate import Accelerator


@dataclass(frozen=True, slots=True)
class RunningLoss:
    """What Trainer has added up of the loss and not logged yet.

    Attributes:
        total: on its device, of this process.
        logged_at: the step behind which the sum begins.
    """

    total: Tensor
    logged_at: int


class OpenTrainer(Trainer):  # type: ignore[misc]
    """Trainer with names of ours for what it keeps to itself."""

    is_fsdp_enabled: bool

    def saving_checkpoint(self) -> AbstractContextManager[None]:
        """Surrounds the writing of a checkpoint."""
        return nullcontext()

    def tensors_to_save(self, state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
        """What of the model's state is written; None is all of the model's own."""
        return state

    @property
    def running_loss(self) -> RunningLoss:
        """Trainer's; from ``on_train_begin`` on it may be set."""
        return RunningLoss(self._tr_loss, self._globalstep_last_logged)

    @running_loss.setter
    def running_loss(self, value: RunningLoss) -> None:
        require_attributes(self, "_tr_loss", "_globalstep_last_logged")
        self._tr_loss, self._globalstep_last_logged = value.total, value.logged_at

    def stop_sharding(self) -> None:
        """Treat the model as whole from here on, which it is before the first step."""
        require_attributes(self, "is_fsdp_enabled")
        self.is_fsdp_enabled = False

    @replaces(Trainer)
    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with self.saving_checkpoint():
            super()._save_checkpoint(model, trial)

    @replaces(Trainer)
    def _save(
        self, output_dir: str | None = None, state_dict: dict[str, Tensor] | None = None
    ) -> None:
        super()._save(output_dir, self.tensors_to_save(state_dict))


class Callback(TrainerCallback):  # type: ignore[misc]
    """A callback of which every event is one that Trainer still reports.

    Raises:
        KrakenError: where the class is made: an event that Trainer does not know.
    """

    def __init_subclass__(cls) -> None:
        for name, method in vars(cls).items():
            if name.startswith("on_"):
                replaces(TrainerCallback)(method)


def save_and_stop(control: TrainerControl) -> None:
    """Have Trainer save a checkpoint and end, behind the step that it has just taken."""
    require_attributes(control, "should_save", "should_training_stop")
    control.should_save = control.should_training_stop = True


def checkpoint_activations(model: PreTrainedModel, *, on: bool = True) -> None:
    """Compute activations again in the backward pass, or keep them."""
    ending = "enable" if on else "disable"
    # The second is the older name, of which newer versions warn.
    names = (f"{kind}_checkpointing_{ending}" for kind in ("activation", "gradient"))
    set_it: Callable[[], None] = next(getattr(model, n) for n in names if hasattr(model, n))
    set_it()


def let_compile(versions: int) -> None:
    """Let torch.compile make so many versions of a model; past its limit it falls back to eager."""
    limits = torch.compiler.config
    require_attributes(limits, "recompile_limit")
    limits.recompile_limit = max(limits.recompile_limit, versions)


def use_one_gpu(arguments: TrainingArguments) -> None:
    """One process is one GPU: otherwise Trainer splits batches over all it sees, by threads."""
    if arguments.device.type == "cuda":
        require_attributes(arguments, "_n_gpu")
        arguments._n_gpu = 1


def fsdp_settings(wrapped: tuple[str, ...]) -> dict[str, Any]:
    """Trainer's ``fsdp_config``: FSDP 2, whole models in checkpoints.

    Args:
        wrapped: classes of modules that accelerate divides; none are divided before it sees them.
    """
    settings: dict[str, Any] = {"version": 2, "state_dict_type": "FULL_STATE_DICT"}
    if not wrapped:
        return {**settings, "auto_wrap_policy": "NO_WRAP"}
    return {**settings, "transformer_layer_cls_to_wrap": [*wrapped]}


def fsdp_precision(accelerator: "Accelerator") -> MixedPrecisionPolicy:
    """The number formats of accelerate's FSDP.

    Raises:
        KrakenError: it was not set up as ``fsdp_settings`` says, of which Trainer passes over what
            it does not know.
    """
    plugin = accelerator.state.fsdp_plugin
    if plugin.fsdp_version != 2 or "FULL_STATE_DICT" not in str(plugin.state_dict_type):
        raise changed("transformers.TrainingArguments does not read fsdp_config as it did")
    return plugin.mixed_precision_policy or MixedPrecisionPolicy()
