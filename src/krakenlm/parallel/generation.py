"""From a prompt to text on the terminal, over any number of devices."""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch

from krakenlm.config import ModelConfig
from krakenlm.console import notes
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.errors import KrakenError
from krakenlm.model.checkpoint import read_config, read_eos_token_ids
from krakenlm.model.shard import split
from krakenlm.parallel.engine import Engine, check_request, room_for_answer
from krakenlm.parallel.launch import DeviceType, Rank, launch, world_size
from krakenlm.parallel.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_USUAL_ANSWER = 64


class Request(NamedTuple):
    """What every rank is told."""

    directory: Path
    prompt: list[int]
    max_new_tokens: int
    sampling: Sampling
    eos_token_ids: frozenset[int]
    dtype: Literal["auto", "float32", "bfloat16", "float16"]


class Token(NamedTuple):
    """What rank 0 says: a token, and the seconds since the prompt went in."""

    id: int
    seconds: float


def generate_tokens(
    request: Request, *, devices: int, device_type: DeviceType, on_token: Callable[[Token], None]
) -> None:
    """Answer a prompt of token ids on ``devices`` ranks; ``on_token`` hears each token at once.

    Raises:
        KrakenError: a request, a model or a number of devices that cannot work.
    """
    config = read_config(request.directory)
    split(config, devices)
    check_request(config, [request.prompt], request.max_new_tokens)
    launch(_answer, [request], devices=devices, on_message=on_token, device_type=device_type)


def generate_text(
    directory: Path,
    prompt: str,
    *,
    devices: int | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    dtype: str = "auto",
    device_type: str = "auto",
    show_stats: bool = False,
) -> str:
    """Continue ``prompt``, writing prompt and answer to standard output as tokens come.

    Args:
        directory: a saved model with its tokenizer.
        prompt: the text to continue.
        devices: ranks; 1 by default, and under torchrun as many as it started.
        max_new_tokens: at most so many; by default 64, or as many as the context leaves.
        sampling: greedy by default.
        dtype: ``auto`` is float32 on CPUs and bfloat16 on GPUs.
        device_type: ``auto`` uses GPUs where there are enough.
        show_stats: write times to standard error as well.

    Returns:
        The answer without the prompt; empty on all but rank 0 under torchrun.
    """
    if dtype not in ("auto", *_DTYPES):
        raise KrakenError(f"--dtype {dtype}: choose one of auto, {', '.join(_DTYPES)}")
    if device_type not in ("auto", "cpu", "cuda"):
        raise KrakenError(f"--device {device_type}: choose one of auto, cpu, cuda")
    config = read_config(directory)
    devices = world_size() if devices is None else devices
    tokenizer = load_tokenizer(directory)
    ids = _encode(tokenizer, prompt, config)
    if max_new_tokens is None:
        max_new_tokens = max(1, min(_USUAL_ANSWER, room_for_answer(config, len(ids))))
    request = Request(
        directory=directory,
        prompt=ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling or Sampling(),
        eos_token_ids=read_eos_token_ids(directory),
        dtype=dtype,  # type: ignore[arg-type]
    )
    writer = _AnswerWriter(tokenizer, request.eos_token_ids, prompt)
    generate_tokens(request, devices=devices, device_type=device_type, on_token=writer.add)  # type: ignore[arg-type]
    return writer.finish(show_stats)


def _encode(tokenizer: "PreTrainedTokenizerFast", prompt: str, config: ModelConfig) -> list[int]:
    ids: list[int] = tokenizer.encode(prompt, add_special_tokens=False)
    if not ids and tokenizer.bos_token_id is not None:
        ids = [int(tokenizer.bos_token_id)]  # an empty prompt asks for a text from its beginning
    if len(tokenizer) > config.vocab_size:
        raise KrakenError(
            f"the tokenizer has {len(tokenizer)} entries and the model's vocabulary "
            f"{config.vocab_size}: use the tokenizer that the model was trained with"
        )
    return ids


def _answer(rank: Rank, request: Request) -> None:
    dtype = request.dtype
    if dtype == "auto":
        dtype = "bfloat16" if rank.device.type == "cuda" else "float32"
    engine = Engine.load(request.directory, rank, _DTYPES[dtype])
    start = time.perf_counter()
    for (token,) in engine.generate(
        torch.tensor([request.prompt]),
        max_new_tokens=request.max_new_tokens,
        sampling=request.sampling,
        eos_token_ids=request.eos_token_ids,
    ):
        if rank.index == 0:
            rank.emit(Token(token, time.perf_counter() - start))


class _AnswerWriter:
    """Writes tokens as text, holding back the bytes of characters that are not whole yet."""

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", eos_token_ids: frozenset[int], prompt: str
    ) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._prompt = prompt
        self._tokens: list[Token] = []
        self._ids: list[int] = []
        self._written = ""

    def add(self, token: Token) -> None:
        if not self._tokens:
            self._write(self._prompt)
        self._tokens.append(token)
        if token.id in self._eos_token_ids:
            return
        self._ids.append(token.id)
        text = self._text()
        if not text.endswith("\N{REPLACEMENT CHARACTER}"):
            self._write(text[len(self._written) :])
            self._written = text

    def finish(self, show_stats: bool) -> str:
        text = self._text()
        if self._tokens:
            self._write(text[len(self._written) :] + "\n")
        if show_stats and self._tokens:
            self._report()
        return text

    def _report(self) -> None:
        first, last, count = self._tokens[0], self._tokens[-1], len(self._tokens)
        line = f"time to first token {1000 * first.seconds:.1f} ms"
        if count > 1:
            line += (
                f", per token after {1000 * (last.seconds - first.seconds) / (count - 1):.1f} ms"
            )
        notes.print(f"{count} tokens: {line}")

    def _text(self) -> str:
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=False))

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()
