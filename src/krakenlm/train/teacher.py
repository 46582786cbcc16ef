"""What an adapted model learns from the model that it was: outputs of layers, and logits.

Shape letters: see ``krakenlm.model``; V is the vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.model.decoder import Decoder

# Elements of logits that are in float32 at once: few enough for a processor's cache.
_AT_ONCE = 1 << 20


class Streams:
    """The residual stream behind each layer of one forward pass.

    It is the embedding and all that the blocks up to there have added, over all branches, whenever
    the wiring sums it: so it is the same thing in every wiring, and of a model and its teacher
    equal where the model computes what its teacher does.
    """

    def __init__(self) -> None:
        self._first: Tensor | None = None
        self._added: dict[int, Tensor] = {}

    @contextmanager
    def watching(self, decoder: Decoder, first: int = 0) -> Iterator["Streams"]:
        """Collect what the decoder's forward passes compute, the last pass's in the end.

        Args:
            decoder: that is watched.
            first: the first layer that its passes run.
        """
        layers: Any = decoder.layers
        handles = [layers[first].norm_1.register_forward_pre_hook(self._begin)]
        for index, layer in enumerate(layers):
            hook = _adding_to(self, index)
            handles += [
                part.register_forward_hook(hook) for part in (layer.attention, layer.feed_forward)
            ]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    @property
    def behind(self) -> dict[int, Tensor]:
        """x_BTD behind each layer that has run, by its index."""
        assert self._first is not None, "a pass has run"
        x_BTD, found = self._first, {}
        for index in sorted(self._added):
            x_BTD = x_BTD + self._added[index]
            found[index] = x_BTD
        return found

    def add(self, index: int, branches_KBTD: Tensor) -> None:
        """Take in what a part of a layer adds."""
        total_BTD = branches_KBTD.sum(dim=0)
        self._added[index] = self._added[index] + total_BTD if index in self._added else total_BTD

    def _begin(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self._first, self._added = inputs[0][0], {}


def _adding_to(streams: Streams, index: int) -> Any:
    def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
        streams.add(index, output)

    return hook


class Teacher:
    """The model whose layers and logits are learned.

    Args:
        model: of a wiring that awaits its sums, in evaluation mode.
    """

    def __init__(self, model: KrakenForCausalLM) -> None:
        self._model = model

    def to(self, device: torch.device) -> None:
        """Move there, unless it is there."""
        self._model.to(device)

    @torch.no_grad()
    def layers(self, ids_BT: Tensor) -> dict[int, Tensor]:
        """The stream behind each layer, x_BTD each; without the head."""
        with Streams().watching(self._model.model) as streams:
            self._model(input_ids=ids_BT, use_cache=False, logits_to_keep=1)
        return streams.behind

    @torch.no_grad()
    def layers_and_logits(self, ids_BT: Tensor) -> tuple[dict[int, Tensor], Tensor]:
        """The same, and logits_BTV."""
        with Streams().watching(self._model.model) as streams:
            logits_BTV = self._model(input_ids=ids_BT, use_cache=False).logits
        return streams.behind, logits_BTV


def layer_loss(
    found: Mapping[int, Tensor], wanted: Mapping[int, Tensor], layers: Sequence[int]
) -> Tensor:
    """How far layers' outputs are from those wanted: squared error over squared length.

    It is a mean over tokens and layers. Lengths differ by orders of magnitude between tokens and
    layers of a trained model, so that each token's error is held to its own.
    """
    losses = []
    for layer in layers:
        error, length = found[layer].float() - wanted[layer].float(), wanted[layer].float()
        losses.append((error.square().sum(-1) / length.square().sum(-1)).mean())
    return torch.stack(losses).mean()


def logits_loss(logits_BTV: Tensor, wanted_BTV: Tensor) -> Tensor:
    """KL divergence of predictions from those wanted, in nats a token."""
    apply: Callable[..., Tensor] = _Divergence.apply
    return apply(logits_BTV.flatten(0, 1), wanted_BTV.flatten(0, 1))


class _Divergence(torch.autograd.Function):
    """KL(wanted || found) over rows [P, V], with its gradient made on the way.

    Written out in PyTorch's functions it would keep five tensors as large as the logits.
    """

    @staticmethod
    def forward(ctx: Any, found_PV: Tensor, wanted_PV: Tensor) -> Tensor:
        rows_at_once = max(1, _AT_ONCE // found_PV.shape[1])
        total = found_PV.new_zeros((), dtype=torch.float32)
        gradient_PV = torch.empty_like(found_PV)
        for start in range(0, len(found_PV), rows_at_once):
            rows = slice(start, start + rows_at_once)
            log_found = F.log_softmax(found_PV[rows].float(), dim=-1)
            log_wanted = F.log_softmax(wanted_PV[rows].float(), dim=-1)
            wanted = log_wanted.exp()
            total += log_wanted.sub_(log_found).mul_(wanted).sum()
            gradient_PV[rows] = log_found.exp_().sub_(wanted).div_(len(found_PV))
        ctx.save_for_backward(gradient_PV)
        return total / len(found_PV)

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, None]:
        (gradient_PV,) = ctx.saved_tensors
        return gradient_PV * outer[0].to(gradient_PV.dtype), None
