"""Texts continued by a model on any number of devices: whole, or as a stream."""

import queue
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from krakenlm.data.chat import chat_if
from krakenlm.engine.answer import Answer
from krakenlm.engine.generation import Ranks, Request, Step, generate_tokens, prepare
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.sampling import Sampling


def generate(
    directory: Path | str,
    prompts: Sequence[str],
    *,
    stream: bool = False,
    devices: int | None = None,
    device_type: str = "auto",
    threads: int | None = None,
    max_new_tokens: int | None = None,
    stop: str | Sequence[str] = (),
    batch_size: int | None = None,
    chat: bool = False,
    system: str | None = None,
    sampling: Sampling | None = None,
    dtype: str = "auto",
    options: EngineOptions | None = None,
) -> list[str] | Iterator[list[str]]:
    """Continue texts of any lengths.

    Args:
        directory: a saved model with its tokenizer.
        prompts: the texts to continue.
        stream: yield the texts' new pieces step by step, as tokens come, instead of returning
            whole answers; a piece is empty while later tokens may change its text, and when the
            answer has ended. Closing the iterator ends the ranks.
        devices: ranks that share the model; see ``Ranks``, also for the next two.
        device_type: kind of device.
        threads: compute threads of a rank.
        max_new_tokens: at most so many; by default 64, in a chat 512, or as many as the context
            leaves behind the longest prompt.
        stop: a text or several; where one of them comes, its answer ends before it.
        batch_size: prompts that are answered at once, which bounds the memory for keys and
            values; by default all of them.
        chat: the prompts are a user's messages, which the chat template of the model's tokenizer
            makes prompts of.
        system: what a chat begins with.
        sampling: greedy by default.
        dtype: ``auto`` is float32 on CPUs and bfloat16 on GPUs.
        options: how the model is spread out and run.

    Returns:
        The answers without their prompts, or with ``stream`` an iterator over lists of pieces.
        Joined, the pieces are what the whole answer decodes to, special tokens left out.

    Raises:
        KrakenError: a request, a model or a number of devices that cannot work.
    """
    request, tokenizer = prepare(
        Path(directory),
        prompts,
        max_new_tokens=max_new_tokens,
        stop=stop,
        batch_size=batch_size,
        chat=chat_if(chat, system),
        sampling=sampling,
        dtype=dtype,
        options=options,
    )
    ranks = Ranks(devices, device_type, threads)
    answers = [request.answer(tokenizer, index) for index in range(len(request.prompts))]
    if stream:
        return _pieces(answers, request, ranks)
    for _ in _pieces(answers, request, ranks):
        pass
    return [answer.text for answer in answers]


def _pieces(answers: Sequence[Answer], request: Request, ranks: Ranks) -> Iterator[list[str]]:
    for step in _steps(request, ranks):
        pieces = [""] * len(answers)
        for index, token in enumerate(step.tokens, step.first):
            pieces[index] = answers[index].add(token)
        yield pieces


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
