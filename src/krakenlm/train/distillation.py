"""A run whose model learns from the model that it was, see ``krakenlm.train.teacher``."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from transformers import Trainer

from krakenlm.config import layer_runs
from krakenlm.overrides import replaces
from krakenlm.train.loop import LoopTrainer
from krakenlm.train.recipe import Adaptation
from krakenlm.train.teacher import Streams, Teacher, layer_loss, logits_loss


class DistillingTrainer(LoopTrainer):
    """The trainer of an adapted model. Its validation loss is the model's own, on the tokens.

    Args:
        teacher: the model that it was.
        adaptation: what is learned of it, and when.
        arguments: of ``LoopTrainer``.
    """

    def __init__(self, teacher: Teacher, adaptation: Adaptation, **arguments: Any) -> None:
        self._teacher = teacher
        self._adaptation = adaptation
        super().__init__(**arguments)
        teacher.to(self.args.device)
        config = self.model.config.to_model_config()
        self._layers = range(config.late_layer_indices[0], config.num_hidden_layers)
        self._runs = layer_runs(config)
        # Layers before the first late one are the teacher's, and so is what they compute. A pass
        # cannot begin behind them where it would add positions again, or where embeddings learn.
        is_free = config.position == "rope" and not adaptation.train_embeddings
        self._first = self._layers.start if is_free else 0

    @replaces(Trainer)
    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """In training, how far the model is from its teacher; else as Trainer has it."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        assert not return_outputs, "Trainer asks for outputs when it evaluates"
        loss = self._distance(model, inputs["input_ids"])
        # Trainer takes the mean over a step's forward passes itself, unless it counts tokens.
        if num_items_in_batch is not None:
            loss = loss / self.args.gradient_accumulation_steps
        return loss

    def _distance(self, model: nn.Module, ids_BT: Tensor) -> Tensor:
        if self.state.global_step < self._adaptation.layerwise_steps:
            wanted = self._teacher.layers(ids_BT)
            found, logits_BTV = self._pass(model, ids_BT, wanted, logits_to_keep=1)
            # Several processes wait for a gradient of each weight, the last norm's too.
            return layer_loss(found.behind, wanted, self._layers) + 0.0 * logits_BTV.sum()
        wanted, wanted_BTV = self._teacher.layers_and_logits(ids_BT)
        found, logits_BTV = self._pass(model, ids_BT, wanted)
        loss = logits_loss(logits_BTV, wanted_BTV)
        if self._adaptation.layerwise_weight:
            of_layers = layer_loss(found.behind, wanted, self._layers)
            loss = loss + self._adaptation.layerwise_weight * of_layers
        return loss

    def _pass(
        self, model: nn.Module, ids_BT: Tensor, known: Mapping[int, Tensor], **options: Any
    ) -> tuple[Streams, Tensor]:
        """The model's streams and logits, from the first layer on that is not the teacher's."""
        decoder, first = self.model.model, self._first
        inputs = {"inputs_embeds": known[first - 1]} if first else {"input_ids": ids_BT}
        decoder.runs = [run for run in self._runs if run.layers.start >= first]
        try:
            with Streams().watching(decoder, first) as streams:
                logits_BTV = model(**inputs, use_cache=False, **options).logits
        finally:
            decoder.runs = self._runs
        return streams, logits_BTV
