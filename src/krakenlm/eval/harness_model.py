"""How does lm-evaluation-harness load and ask a model of ours?

What depends on the harness's private names stands here and nowhere else. Importing this module
needs ``lm_eval`` and makes the harness know ``--model krakenlm``. Harnesses that look for plugins
find the class without it, through the package's entry point.
"""

from collections.abc import Sequence
from typing import Any

import torch
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM

from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.errors import KrakenError
from krakenlm.eval.model import load_causal_lm, pick_device
from krakenlm.eval.report import Backend
from krakenlm.overrides import replaces, require_arguments

Request = tuple[Any, list[int], list[int]]
"""What is asked, the tokens of the context, and those of the answer whose likelihood is wanted."""


class CountingLM:
    """Stands before a model of the harness's among the bases of a class, and counts its requests.

    Attributes:
        asked: requests for a likelihood so far.
        truncated: those of them that were longer than the context, so that the harness left out
            the beginning of theirs.
    """

    asked = 0
    truncated = 0

    def longest(self) -> tuple[int, int]:
        """Tokens of a request, answer included, and of an answer alone, that the model can see."""
        raise NotImplementedError

    @replaces(TemplateLM)
    def _loglikelihood_tokens(self, requests: Sequence[Request], **options: Any) -> Any:
        self.asked += len(requests)
        self.truncated += count_truncated(requests, *self.longest())
        # Of the model behind this class, which knows its options by name.
        return super()._loglikelihood_tokens(requests, **options)  # type: ignore[misc]


@register_model("krakenlm")
class KrakenLM(CountingLM, HFLM):  # type: ignore[misc]
    """The harness's own Transformers model, loaded the way this project loads models.

    That is: safetensors only, no code from the folder, and an error where weights and
    configuration do not fit instead of random numbers in the gaps.
    """

    runtime: Backend = "hf"
    devices = 1

    def __init__(
        self,
        pretrained: str,
        *,
        device: str | None = None,
        dtype: str = "auto",
        batch_size: int | str = 1,
        max_batch_size: int | None = 64,
        max_length: int | None = None,
        add_bos_token: bool = False,
        softmax_dtype: str | None = None,
        sublayers: int | None = None,
    ) -> None:
        """Load a model.

        Args:
            pretrained: a model directory with a tokenizer.
            device: ``cpu``, ``cuda``, ...; a GPU where there is one if not given.
            dtype: ``auto`` is that of the weights.
            batch_size: requests computed at once, or ``auto``.
            max_batch_size: what ``auto`` tries first.
            max_length: tokens a request may have; the model's context length if not given.
            add_bos_token: begin each request with the tokenizer's first token.
            softmax_dtype: that log-likelihoods are computed in; that of the logits if not given.
            sublayers: another N than the model's own, see ``krakenlm.config.with_sublayers``.

        Raises:
            KrakenError: no such device or number format, or not a whole model.
        """
        target = pick_device(device or "auto")
        model = load_causal_lm(pretrained, device=target, sublayers=sublayers)
        arguments = {
            "pretrained": model if dtype == "auto" else model.to(_dtype_named(dtype)),
            "tokenizer": load_tokenizer(pretrained),
            "backend": "causal",
            "batch_size": batch_size,
            "max_batch_size": max_batch_size,
            "max_length": max_length,
            "add_bos_token": add_bos_token,
            "softmax_dtype": softmax_dtype,
        }
        require_arguments(HFLM.__init__, arguments)  # it passes over what it does not know
        super().__init__(**arguments)
        self.sublayers = sublayers
        self.parameters = sum(parameter.numel() for parameter in self.model.parameters())
        self.dtype_name = str(self.model.dtype).removeprefix("torch.")

    def close(self) -> None:
        """Nothing runs beside this process."""

    def longest(self) -> tuple[int, int]:
        """The last token is only predicted, not seen."""
        return self.max_length + 1, self.max_length


def count_truncated(requests: Sequence[Request], longest: int, longest_answer: int) -> int:
    """How many requests have more than ``longest`` tokens, so that their beginning is left out.

    Raises:
        KrakenError: an answer alone has more than ``longest_answer``, and could not be scored.
    """
    for _, _, answer in requests:
        if len(answer) > longest_answer:
            raise KrakenError(
                f"an answer of {len(answer)} tokens does not fit the context of "
                f"{longest_answer}: evaluate a model with a longer one, or leave the task out"
            )
    return sum(len(context) + len(answer) > longest for _, context, answer in requests)


def _dtype_named(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise KrakenError(f"dtype={name} is no number format: choose float32, bfloat16 or float16")
    return dtype
