"""How well does a model predict a text?

The text is cut into windows of the context length that overlap by one token, so that every token
but the very first is predicted exactly once.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from krakenlm.console import notes, progress_bar
from krakenlm.data.shards import Tokens, largest
from krakenlm.data.text import check_files, pieces, utf8_length
from krakenlm.data.tokenizer import encode, load_tokenizer, plain_encoder
from krakenlm.data.tokens import open_split
from krakenlm.errors import KrakenError
from krakenlm.eval.model import check_directory, load_causal_lm, pick_device

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
        tokens: how many were predicted: all but the first, the ends of documents included.
        bytes: the UTF-8 length of the text.
        window: tokens a window spans.
    """

    loss: float
    perplexity: float
    bits_per_byte: float
    tokens: int
    bytes: int
    window: int

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
    split: str = "validation",
) -> PerplexityResult:
    """Measure a model's perplexity on prepared tokens or on a text file.

    Args:
        model: a model directory.
        data: a prepared directory, or a text file, which the model's own tokenizer then encodes
            as ``prepare`` does: each document followed by the end-of-text token.
        batch_size: windows computed at once.
        device: ``auto``, ``cpu``, ``cuda``, ...
        window: tokens a window spans; the model's context length if not given.
        split: of the prepared directory.

    Raises:
        KrakenError: the model or the data are missing or damaged, or do not fit each other.
    """
    if batch_size < 1:
        raise KrakenError(f"batch size {batch_size} cannot work: choose at least 1")
    model, data = Path(model), Path(data)
    check_directory(model)
    target = pick_device(device)
    # The text first: it is quick to refuse, a large model is slow to load.
    tokens, size = _tokens_of(data, split, model)
    loaded = load_causal_lm(model, device=target)
    window = _check_window(window, loaded.config, model)
    _check_tokens(tokens, loaded.config.vocab_size, data, model)
    nats = sum_of_losses(loaded, tokens, window=window, batch_size=batch_size)
    predicted = len(tokens) - 1
    loss = nats / predicted
    if not math.isfinite(loss):
        raise KrakenError(
            f"the loss of {model} on {data} is {loss}: its weights are damaged, or overflow in "
            "their number format"
        )
    return PerplexityResult(
        loss=loss,
        perplexity=math.exp(min(loss, 700.0)),  # beyond, a float overflows
        bits_per_byte=nats / math.log(2) / size,
        tokens=predicted,
        bytes=size,
        window=window,
    )


@torch.inference_mode()
def sum_of_losses(
    model: "PreTrainedModel", tokens: Tokens, *, window: int, batch_size: int
) -> float:
    """The negative log-likelihood, in nats, of every token but the first.

    Args:
        model: in evaluation mode; it is asked for logits only.
        tokens: one-dimensional.
        window: tokens that a window spans; it predicts all but its first.
        batch_size: windows computed at once.
    """
    total = 0.0
    count = -(-(len(tokens) - 1) // (window - 1))
    with progress_bar("loss {task.fields[loss]}") as progress:
        task = progress.add_task("windows", total=count, loss="-")
        done = 0
        for batch_BT in _batches(tokens, window, batch_size):
            ids_BT = torch.from_numpy(batch_BT.astype(np.int64)).to(model.device)
            logits_BTV = model(input_ids=ids_BT[:, :-1], use_cache=False).logits
            # Row by row: a float32 copy of the whole batch's logits would double the memory.
            losses = [_loss(*pair) for pair in zip(logits_BTV, ids_BT[:, 1:], strict=True)]
            total += float(torch.stack(losses).sum())
            done += batch_BT.shape[0] * (batch_BT.shape[1] - 1)
            progress.update(task, advance=len(batch_BT), loss=f"{total / done:.4f}")
    return total


def _loss(logits_TV: Tensor, ids_T: Tensor) -> Tensor:
    each_T = functional.cross_entropy(logits_TV.float(), ids_T, reduction="none")
    return each_T.double().sum()


def _batches(tokens: Tokens, window: int, batch_size: int) -> Iterator[NDArray[Any]]:
    """Batches of windows; the last window, which may be shorter, comes alone."""
    stride = window - 1
    whole = (len(tokens) - 1) // stride
    for first in range(0, whole, batch_size):
        starts = range(first, min(first + batch_size, whole))
        yield np.stack([tokens[start * stride : start * stride + window] for start in starts])
    if whole * stride < len(tokens) - 1:
        yield tokens[whole * stride : len(tokens)][None]


def _tokens_of(data: Path, split: str, model: Path) -> tuple[Tokens, int]:
    """The token ids of ``data`` and the UTF-8 length of its text."""
    if data.is_dir():
        opened = open_split(data, split, verify=True)
        _note_other_tokenizer(data, model)
        tokens, size = opened.tokens, opened.info.bytes
    else:
        tokens, size = _encode_file(data, model)
    if len(tokens) < 2 or not size:
        raise KrakenError(f"{data} has {len(tokens)} tokens: at least 2 are needed to predict one")
    return tokens, size


def _encode_file(path: Path, model: Path) -> tuple[NDArray[Any], int]:
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
    return np.concatenate(parts), size


def _note_other_tokenizer(data: Path, model: Path) -> None:
    """Say so when the model brings a tokenizer that reads these token ids as other text."""
    theirs, ours = model / "tokenizer.json", data / "tokenizer" / "tokenizer.json"
    if not (theirs.is_file() and ours.is_file()) or theirs.read_bytes() == ours.read_bytes():
        return
    known = load_tokenizer(model).get_vocab()
    if any(
        known.get(entry) != number for entry, number in load_tokenizer(data).get_vocab().items()
    ):
        notes.print(
            f"note: {data} was prepared with another tokenizer than {model} has: the numbers "
            "below mean little; prepare the text with --tokenizer of the model's directory",
            markup=False,
        )


def _check_window(window: int | None, config: Any, model: Path) -> int:
    limit: int | None = getattr(config, "max_position_embeddings", None)
    window = limit if window is None else window
    if window is None:
        raise KrakenError(f"{model} does not say how long its context is: choose --window N")
    if window < 2 or (limit is not None and window > limit):
        fits = "at least 2" if limit is None else f"one from 2 to {limit}, its context length"
        raise KrakenError(f"a window of {window} tokens does not fit {model}: choose {fits}")
    return window


def _check_tokens(tokens: Tokens, vocab_size: int, data: Path, model: Path) -> None:
    found = largest(tokens)
    if found >= vocab_size:
        raise KrakenError(
            f"{data} holds token {found}, outside the vocabulary of {vocab_size} of {model}: "
            "prepare the text with that model's tokenizer"
        )
