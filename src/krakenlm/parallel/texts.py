"""Texts continued by a model on any number of devices: whole, as a stream, or on the terminal."""

import queue
import sys
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from krakenlm.console import notes
from krakenlm.parallel.engine import EngineOptions
from krakenlm.parallel.generation import Ranks, Request, Step, generate_tokens, prepare
from krakenlm.parallel.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def generate(
    directory: Path | str,
    prompts: Sequence[str],
    *,
    stream: bool = False,
    devices: int | None = None,
    device_type: str = "auto",
    threads: int | None = None,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    dtype: str = "auto",
    options: EngineOptions | None = None,
) -> list[str] | Iterator[list[str]]:
    """Continue texts of any lengths as one batch.

    Args:
        directory: a saved model with its tokenizer.
        prompts: the texts to continue.
        stream: yield the texts' new pieces step by step, as tokens come, instead of returning
            whole answers; a piece is empty while a character is not whole yet, and when its text
            has ended. Closing the iterator ends the ranks.
        devices: ranks that share the model; see ``Ranks``, also for the next two.
        device_type: kind of device.
        threads: compute threads of a rank.
        max_new_tokens: at most so many; by default 64, or as many as the context leaves.
        sampling: greedy by default.
        dtype: ``auto`` is float32 on CPUs and bfloat16 on GPUs.
        options: how the model is spread out and run.

    Returns:
        The answers without their prompts, or with ``stream`` an iterator over lists of pieces.

    Raises:
        KrakenError: a request, a model or a number of devices that cannot work.
    """
    request, tokenizer = prepare(
        Path(directory),
        prompts,
        max_new_tokens=max_new_tokens,
        sampling=sampling,
        dtype=dtype,
        options=options,
    )
    pieces = _pieces(request, tokenizer, Ranks(devices, device_type, threads))
    if stream:
        return pieces
    return ["".join(of_one) for of_one in zip(*pieces, strict=True)]


def _pieces(
    request: Request, tokenizer: "PreTrainedTokenizerFast", ranks: Ranks
) -> Iterator[list[str]]:
    texts = [_Text(tokenizer, request.eos_token_ids) for _ in request.prompts]
    for step in _steps(request, ranks):
        yield [text.add(token) for text, token in zip(texts, step.tokens, strict=True)]
    yield [text.rest() for text in texts]


class _ClosedError(Exception):
    """Nobody listens any more."""


def _steps(request: Request, ranks: Ranks) -> Iterator[Step]:
    """``generate_tokens`` turned inside out: its callback's steps as an iterator."""
    heard: queue.SimpleQueue[Step | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()

    def hear(step: Step) -> None:
        if closed.is_set():
            raise _ClosedError
        heard.put(step)

    def work() -> None:
        try:
            generate_tokens(request, ranks, hear)
            heard.put(None)
        except BaseException as error:
            heard.put(error)

    worker = threading.Thread(target=work, name="krakenlm generate", daemon=True)
    worker.start()
    try:
        while (step := heard.get()) is not None:
            if isinstance(step, BaseException):
                raise step
            yield step
    finally:
        closed.set()
        worker.join()


class _Text:
    """Tokens of one answer as text, holding back the bytes of characters not whole yet."""

    def __init__(self, tokenizer: "PreTrainedTokenizerFast", eos_token_ids: frozenset[int]) -> None:
        self._tokenizer = tokenizer
        self._eos_token_ids = eos_token_ids
        self._ids: list[int] = []
        self._ended = False
        self._told = 0

    def add(self, token: int) -> str:
        """The new piece of text that a token completes."""
        self._ended |= token in self._eos_token_ids
        if self._ended:
            return ""
        self._ids.append(token)
        text = self.whole()
        return "" if text.endswith("\N{REPLACEMENT CHARACTER}") else self._tell(text)

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        return self._tell(self.whole())

    def whole(self) -> str:
        """All text so far."""
        return str(self._tokenizer.decode(self._ids, skip_special_tokens=False))

    def _tell(self, text: str) -> str:
        new, self._told = text[self._told :], len(text)
        return new


def print_answer(
    directory: Path, prompt: str, *, ranks: Ranks, show_stats: bool, **request_fields: Any
) -> str:
    """Continue one prompt, writing prompt and answer to standard output as tokens come.

    Args:
        directory: a saved model with its tokenizer.
        prompt: the text to continue.
        ranks: where.
        show_stats: write times to standard error as well.
        request_fields: see ``krakenlm.parallel.generation.prepare``.

    Returns:
        The answer without the prompt; empty on all but rank 0 under torchrun.
    """
    request, tokenizer = prepare(directory, [prompt], **request_fields)
    text = _Text(tokenizer, request.eos_token_ids)
    steps: list[Step] = []

    def write(step: Step) -> None:
        if not steps:
            _write(prompt)
        steps.append(step)
        _write(text.add(step.tokens[0]))

    generate_tokens(request, ranks, write)
    if steps:
        _write(text.rest() + "\n")
    if show_stats and steps:
        _report(steps)
    return text.whole()


def _report(steps: list[Step]) -> None:
    first, last, count = steps[0], steps[-1], len(steps)
    line = f"time to first token {1000 * first.seconds:.1f} ms"
    if count > 1:
        line += f", per token after {1000 * (last.seconds - first.seconds) / (count - 1):.1f} ms"
    notes.print(f"{count} tokens: {line}")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
