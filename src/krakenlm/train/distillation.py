"""A run whose model learns from the model that it was, see ``krakenlm.train.teacher``."""

from typing import Any

from torch import Tensor, nn
from transformers import Trainer

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
        adaptation = self._adaptation
        alone = self.state.global_step < adaptation.layerwise_steps
        with Streams().watching(self.model.model) as streams:
            if alone:
                wanted = self._teacher.layers(ids_BT)
                model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
                return layer_loss(streams.behind, wanted, self._layers)
            wanted, wanted_BTV = self._teacher.layers_and_logits(ids_BT)
            logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
            loss = logits_loss(logits_BTV, wanted_BTV)
            if adaptation.layerwise_weight:
                of_layers = layer_loss(streams.behind, wanted, self._layers)
                loss = loss + adaptation.layerwise_weight * of_layers
            return loss
