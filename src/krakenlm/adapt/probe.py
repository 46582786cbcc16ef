"""How well does a model predict with some of its layers late, before anything is trained?"""

import math
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

import torch

from krakenlm.config import ModelConfig, awaited, format_layers, layer_runs
from krakenlm.data.tokens import open_split
from krakenlm.errors import KrakenError
from krakenlm.eval.model import load_causal_lm
from krakenlm.eval.perplexity import sum_of_losses
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.train.models import with_weights_of

# Of logits in float32 that should be equal, over the largest of them.
_ROUNDING = 1e-3


class Sample(NamedTuple):
    """Held-out text that perplexity is measured on.

    Attributes:
        data: a prepared folder.
        split: of it.
        windows: how many, from the beginning of the split.
        window: tokens of each.
    """

    data: Path
    split: str
    windows: int
    window: int

    @classmethod
    def parse(cls, text: str, data: Path) -> "Sample":
        """``4x512`` of the validation split.

        Raises:
            KrakenError: it reads otherwise.
        """
        windows, _, window = text.partition("x")
        numbers = [
            int(n) if n.isascii() and n.isdigit() and len(n) < 7 else 0 for n in (windows, window)
        ]
        if min(numbers) < 1 or numbers[1] < 2:
            raise KrakenError(f"--sample {text}: give windows and their tokens, such as 4x512")
        return cls(data, "validation", *numbers)


class Probe:
    """A model with the weights of another, of whose layers any may be late.

    Args:
        directory: of the model whose sums are awaited.
        config: the same weights in the wiring and layout that it is to be adapted to.
        sample: what it predicts.
        device: where.

    Raises:
        KrakenError: the folder or the sample is not whole, or the sample is too short.
    """

    def __init__(
        self, directory: Path, config: ModelConfig, sample: Sample, device: torch.device
    ) -> None:
        self._directory = directory
        self._config = config
        self._sample = sample
        opened = open_split(sample.data, sample.split, verify=False)
        needed = sample.windows * (sample.window - 1) + 1
        if len(opened.tokens) < needed:
            raise KrakenError(
                f"{sample.data} has {len(opened.tokens)} tokens to validate with, and a sample of "
                f"{sample.windows}x{sample.window} needs {needed}: make it smaller"
            )
        self._tokens = opened.tokens[:needed]
        self._device = device
        model = with_weights_of(directory, KrakenConfig.from_model_config(config))
        self._model = model.to(device).eval()

    def perplexity(self, late: Collection[int]) -> float:
        """Of the sample, with these layers late and the others awaited."""
        self._model.model.runs = layer_runs(self.with_late(late))
        nats, count = sum_of_losses(
            self._model, self._tokens, window=self._sample.window, batch_size=1, shown=False
        )
        return math.exp(min(nats / count, 700.0))

    def with_late(self, late: Collection[int]) -> ModelConfig:
        """The configuration of the model with these layers late."""
        if not late:
            return awaited(self._config)
        return self._config.replace(late_layers=format_layers(late))

    @torch.inference_mode()
    def check_equal(self) -> float:
        """Compare the layout, with all sums awaited, with the model as it lies in its folder.

        Returns:
            The largest difference of their logits, over the largest logit.

        Raises:
            KrakenError: it is more than rounding.
        """
        ids_BT = torch.tensor(self._tokens[None, : self._sample.window].astype("int64"))
        ids_BT = ids_BT.to(self._device)
        original = load_causal_lm(self._directory, device=self._device).float()
        wanted = original(input_ids=ids_BT, use_cache=False).logits
        self._model.model.runs = layer_runs(awaited(self._config))
        found = self._model(input_ids=ids_BT, use_cache=False).logits
        difference = float((found - wanted).abs().max() / wanted.abs().max())
        if not difference <= _ROUNDING:
            raise KrakenError(
                f"{self._directory}: laid out for {self._config.num_sublayers} branches, with all "
                f"sums awaited, its logits differ by {difference:.2g} of the largest: report this, "
                "with the model's config.json"
            )
        return difference
