"""How well does a model predict a text?

The text is cut into windows (see ``krakenlm.eval.windows``), over the whole of it or over each of
its documents. Every token but the very first is predicted exactly once.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from krakenlm.config import with_sublayers
from krakenlm.console import progress_bar
from krakenlm.data.same_tokenizer import check_model_tokenizer
from krakenlm.data.shards import Tokens, largest
from krakenlm.data.text import check_files, pieces, utf8_length
from krakenlm.data.tokenizer import encode, load_tokenizer, plain_encoder
from krakenlm.data.tokens import open_split
from krakenlm.errors import KrakenError
from krakenlm.eval.model import check_directory, load_causal_lm, pick_device
from krakenlm.eval.windows import Window, batches, padded, windows_of
from krakenlm.model.checkpoint import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class PerplexityResult:
    """What a model makes of a text.

    Attributes:
        loss: nats per predicted token.
        perplexity: ``exp(loss)``.
        bits_per_byte: all nats over ``ln 2`` and the UTF-8 length of the text; unlike the two
            above it compares models with different tokenizers.
        tokens: how many were predicted, the ends of documents included: all but the first, or all
            where documents are taken one by one.
        bytes: the UTF-8 length of the text.
        window: tokens a window spans.
        stride: tokens from the beginning of a window to that of the next one.
        per_document: whether no window reaches over the end of a document.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    window: int
    stride: int
    per_document: bool

    @classmethod
    def of(cls, nats: float, tokens: int, bytes: int, **settings: Any) -> "PerplexityResult":
        """From all tokens' negative log-likelihood, in nats; ``settings`` are the other fields."""
        loss = nats / tokens
        return cls(
            loss=loss,
            perplexity=math.exp(min(loss, 700.0)),  # beyond, a float overflows
            bits_per_byte=nats / math.log(2) / bytes,
            tokens=tokens,
            bytes=bytes,
            **settings,
        )

    def to_json(self) -> dict[str, float | int]:
        """The fields as a dictionary."""
        return asdict(self)


def perplexity(
    model: str | Path,
    data: str | Path,
    *,
    batch_size: int = 4,
    device: str = "auto",
    window: int | None = None,
    stride: int | None = None,
    per_document: bool = False,
    split: str = "validation",
    other_tokenizer: bool = False,
    sublayers: int | None = None,
) -> PerplexityResult:
    """Measure a model's perplexity on prepared tokens or on a text file.

    Args:
        model: a model directory.
        data: a prepared directory, or a text file, which the model's own tokenizer then encodes
            as ``prepare`` does: each document followed by the end-of-text token.
        batch_size: windows computed at once.
        device: ``auto``, ``cpu``, ``cuda``, ...
        window: tokens a window spans; the model's context length if not given.
        stride: tokens from the beginning of a window to that of the next; by default windows
            overlap by one token, so that each token is computed once. Smaller strides give
            tokens more context and take longer.
        per_document: predict each document from nothing but an end-of-text token and itself.
        split: of the prepared directory.
        other_tokenizer: take tokens that another tokenizer made than the model has.
        sublayers: another N than the model's own, see ``krakenlm.config.with_sublayers``.

    Raises:
        KrakenError: the model or the data are missing or damaged, or do not fit each other, or N
            is no choice for this model.
    """
    if batch_size < 1:
        raise KrakenError(f"batch size {batch_size} cannot work: choose at least 1")
    model, data = Path(model), Path(data)
    check_directory(model)
    if sublayers is not None:
        with_sublayers(read_config(model), sublayers)
    target = pick_device(device)
    # The text first: it is quick to refuse, a large model is slow to load.
    text = _text_of(data, split, model, other_tokenizer)
    loaded = load_causal_lm(model, device=target, sublayers=sublayers)
    window = _check_window(window, loaded.config, model)
    stride = _check_stride(stride, window)
    _check_tokens(text.tokens, loaded.config.vocab_size, data, model)
    nats, predicted = sum_of_losses(
        loaded,
        text.tokens,
        window=window,
        stride=stride,
        batch_size=batch_size,
        eos_id=text.eos_id if per_document else None,
    )
    _check_loss(nats / predicted, data, model)
    return PerplexityResult.of(
        nats, predicted, text.bytes, window=window, stride=stride, per_document=per_document
    )


def perplexity_of_each(
    model: str | Path, data: str | Path, sublayers: Sequence[int], **settings: Any
) -> dict[int, PerplexityResult]:
    """What each N makes of a model for which it is a choice.

    Args:
        model: see ``perplexity``.
        data: likewise.
        sublayers: the values of N.
        settings: the other arguments of ``perplexity``.

    Returns:
        A result for each N, in this order; where the model's own is not among them, it comes first.

    Raises:
        KrakenError: as ``perplexity``; before anything is measured where an N does not fit.
    """
    if len(set(sublayers)) < len(sublayers):
        raise KrakenError(f"--sublayers {','.join(map(str, sublayers))}: give each number once")
    stored = read_config(Path(model))
    for n in sublayers:
        with_sublayers(stored, n)
    own = stored.num_sublayers
    each = [*sublayers] if own in sublayers else [own, *sublayers]
    return {n: perplexity(model, data, sublayers=n, **settings) for n in each}


@torch.inference_mode()
def sum_of_losses(
    model: "PreTrainedModel",
    tokens: Tokens,
    *,
    window: int,
    batch_size: int,
    stride: int | None = None,
    eos_id: int | None = None,
    shown: bool = True,
) -> tuple[float, int]:
    """The negative log-likelihood of tokens in nats, and how many tokens it is of.

    Args:
        model: in evaluation mode; it is asked for logits only.
        tokens: one-dimensional; the first is not predicted, unless there is an ``eos_id``.
        window: tokens that a window spans; it sees all but its last.
        batch_size: windows computed at once.
        stride: tokens between the beginnings of windows; ``window - 1`` if not given.
        eos_id: the token that ends a document, where documents are taken one by one.
        shown: with a progress bar.
    """
    stride = window - 1 if stride is None else stride
    windows = windows_of(tokens, window=window, stride=stride, eos_id=eos_id)
    total, predicted = 0.0, 0
    bar = progress_bar("loss {task.fields[loss]}")
    bar.disable = not shown
    with bar as progress:
        task = progress.add_task("tokens", total=len(tokens) - (eos_id is None), loss="-")
        for batch in batches(windows, batch_size):
            ids_BT = torch.from_numpy(padded(tokens, batch, eos_id)).to(model.device)
            # What fills rows up stands behind their tokens, where causal attention sees it not.
            logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
            # Row by row: a float32 copy of the whole batch's logits would double the memory.
            rows = zip(logits_BTV, ids_BT, batch, strict=True)
            total += float(torch.stack([_loss(*row) for row in rows]).sum())
            scored = sum(end - first for _, first, end in batch)
            predicted += scored
            progress.update(task, advance=scored, loss=f"{total / predicted:.4f}")
    return total, predicted


def _loss(logits_TV: Tensor, ids_T: Tensor, window: Window) -> Tensor:
    first, end = window.first - window.start, window.end - window.start
    each_T = functional.cross_entropy(
        logits_TV[first - 1 : end - 1].float(), ids_T[first:end], reduction="none"
    )
    return each_T.double().sum()


class _Text(NamedTuple):
    """Token ids, the UTF-8 length of what they say, and the token that ends a document."""

    tokens: Tokens
    bytes: int
    eos_id: int


def _text_of(data: Path, split: str, model: Path, other_tokenizer: bool) -> _Text:
    if data.is_dir():
        opened = open_split(data, split, verify=True)
        check_model_tokenizer(data, opened.manifest, model, insist=other_tokenizer)
        text = _Text(opened.tokens, opened.info.bytes, opened.manifest.eos_id)
    else:
        text = _encode_file(data, model)
    if len(text.tokens) < 2 or not text.bytes:
        raise KrakenError(
            f"{data} has {len(text.tokens)} tokens: at least 2 are needed to predict one"
        )
    return text


def _encode_file(path: Path, model: Path) -> _Text:
    check_files([path])
    try:
        tokenizer = load_tokenizer(model)
    except KrakenError as error:
        raise KrakenError(f"{error}; a prepared directory needs no tokenizer") from error
    encoder = plain_encoder(tokenizer)
    size, parts = 0, []
    for piece in pieces([path]):
        size += utf8_length(piece.text)
        ids = encode(encoder, [piece.text])[0]
        parts.append(np.array([*ids, tokenizer.eos_token_id] if piece.last else ids, np.uint32))
    return _Text(np.concatenate(parts), size, tokenizer.eos_token_id)


def _check_window(window: int | None, config: Any, model: Path) -> int:
    limit: int | None = getattr(config, "max_position_embeddings", None)
    window = limit if window is None else window
    if window is None:
        raise KrakenError(f"{model} does not say how long its context is: choose --window N")
    if window < 2 or (limit is not None and window > limit):
        fits = "at least 2" if limit is None else f"one from 2 to {limit}, its context length"
        raise KrakenError(f"a window of {window} tokens does not fit {model}: choose {fits}")
    return window


def _check_stride(stride: int | None, window: int) -> int:
    if stride is None:
        return window - 1
    if not 1 <= stride < window:
        raise KrakenError(
            f"a stride of {stride} tokens does not fit a window of {window}: choose one from 1 to "
            f"{window - 1}, so that each window scores something and none is left out"
        )
    return stride


def _check_tokens(tokens: Tokens, vocab_size: int, data: Path, model: Path) -> None:
    found = largest(tokens)
    if found >= vocab_size:
        raise KrakenError(
            f"{data} holds token {found}, outside the vocabulary of {vocab_size} of {model}: "
            "prepare the text with that model's tokenizer"
        )


def _check_loss(loss: float, data: Path, model: Path) -> None:
    if not math.isfinite(loss):
        raise KrakenError(
            f"the loss of {model} on {data} is {loss}: its weights are damaged, or overflow in "
            "their number format"
        )
