"""A request on its way: from prompts to the ranks that answer them, token by token."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from krakenlm.config import ModelConfig, with_sublayers
from krakenlm.data.chat import Chat, chat_prompts
from krakenlm.data.folder_tokenizer import FolderTokenizer, read_tokenizer
from krakenlm.engine.answer import Answer, stop_texts
from krakenlm.engine.engine import Ended, Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.requests import check_request, room_for_answer
from krakenlm.engine.sampling import Sampling
from krakenlm.errors import KrakenError, RequestError
from krakenlm.model.checkpoint import read_config, read_eos_token_ids
from krakenlm.ranks.devices import DTYPES, check_device, check_dtype, check_threads
from krakenlm.ranks.failures import TIMEOUT_SECONDS, check_timeout
from krakenlm.ranks.launch import Rank, launch, world_size
from krakenlm.ranks.placement import check_placement

USUAL_ANSWER = 64
"""Tokens, where nobody says how many."""
USUAL_REPLY = 512
"""The same in a chat, where an answer has an end of its own."""


class Request(NamedTuple):
    """What every rank is told.

    Attributes:
        directory: a saved model; with its tokenizer where there are stop texts.
        prompts: token ids.
        max_new_tokens: at most so many for each.
        sampling: how they are chosen.
        eos_token_ids: end an answer.
        dtype: see ``prepare``.
        options: how the model is spread out and run.
        stop: texts that end an answer.
        batch_size: prompts that are answered at once; None is all of them.
        names: what to call each prompt in a refusal.
    """

    directory: Path
    prompts: list[list[int]]
    max_new_tokens: int
    sampling: Sampling
    eos_token_ids: frozenset[int]
    dtype: str
    options: EngineOptions
    stop: tuple[str, ...] = ()
    batch_size: int | None = None
    names: tuple[str, ...] = ()

    def batches(self) -> list[range]:
        """Which prompts are answered together, in this order."""
        size = self.batch_size or len(self.prompts)
        starts = range(0, len(self.prompts), size)
        return [range(start, min(start + size, len(self.prompts))) for start in starts]

    def answer(self, tokenizer: FolderTokenizer, index: int) -> Answer:
        """Turns the tokens of one prompt's answer into text."""
        return Answer(
            tokenizer,
            self.prompts[index],
            eos_token_ids=self.eos_token_ids,
            stop=self.stop,
            max_new_tokens=self.max_new_tokens,
        )


class Step(NamedTuple):
    """What rank 0 says of one batch.

    Attributes:
        tokens: the next one of each sequence.
        seconds: since the batch's prompts went in.
        first: the number of the batch's first prompt among all.
    """

    tokens: list[int]
    seconds: float
    first: int = 0


class Ranks(NamedTuple):
    """Where a request runs.

    Attributes:
        devices: ranks; None is one, and under torchrun as many as it started.
        device_type: ``auto`` uses GPUs where there are enough.
        threads: compute threads of a rank; None is one for each of its cores.
        timeout: seconds without a sign of life after which a rank is lost; 0 waits on.
    """

    devices: int | None = None
    device_type: str = "auto"
    threads: int | None = None
    timeout: float = TIMEOUT_SECONDS


def generate_tokens(request: Request, ranks: Ranks, on_step: Callable[[Step], None]) -> None:
    """Answer prompts of token ids; ``on_step`` hears each step's tokens at once.

    Raises:
        KrakenError: a request, a model or a number of devices that cannot work.
    """
    check_device(ranks.device_type)
    check_threads(ranks.threads)
    check_timeout(ranks.timeout)
    options = request.options
    config = with_sublayers(read_config(request.directory), options.sublayers)
    devices = world_size() if ranks.devices is None else ranks.devices
    check_placement(config, devices, options.placement, tensor_parallel=options.tensor_parallel)
    if request.batch_size is not None and request.batch_size < 1:
        raise RequestError(f"--batch-size {request.batch_size}: needs 1 or more")
    check_request(config, request.prompts, request.max_new_tokens, request.names)
    launch(
        _answer,
        [request],
        devices=devices,
        on_message=on_step,
        device_type=ranks.device_type,  # type: ignore[arg-type]
        threads=ranks.threads,
        timeout=ranks.timeout,
    )


def prepare(
    directory: Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    dtype: str = "auto",
    options: EngineOptions | None = None,
    stop: str | Sequence[str] = (),
    batch_size: int | None = None,
    names: Sequence[str] = (),
    chat: Chat | None = None,
) -> tuple[Request, FolderTokenizer]:
    """A request for texts, and the tokenizer that turns its tokens back.

    Args:
        directory: a saved model with its tokenizer.
        prompts: the texts to continue, of any lengths.
        max_new_tokens: at most so many; by default ``usual_answer``, or as many as the context
            leaves behind the longest prompt.
        sampling: greedy by default.
        dtype: ``auto`` is float32 on CPUs and bfloat16 on GPUs.
        options: how the model is spread out and run.
        stop: a text or several that end an answer and are no part of it.
        batch_size: prompts that are answered at once; None is all of them.
        names: what to call each prompt in a refusal.
        chat: the prompts are a user's messages; what ends a text of the tokenizer ends an answer
            too.
    """
    check_dtype(dtype)
    config = read_config(directory)
    tokenizer = read_tokenizer(directory)
    eos_token_ids = read_eos_token_ids(directory)
    if chat is not None:
        prompts = chat_prompts(directory, tokenizer, prompts, chat, names)
        if tokenizer.eos_token_id is not None:
            eos_token_ids |= {tokenizer.eos_token_id}
    ids = [_encode(tokenizer, prompt, config) for prompt in prompts]
    if max_new_tokens is None:
        longest = max(map(len, ids), default=0)
        max_new_tokens = max(1, min(usual_answer(chat), room_for_answer(config, longest)))
    request = Request(
        directory=directory,
        prompts=ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling or Sampling(),
        eos_token_ids=eos_token_ids,
        dtype=dtype,
        options=options or EngineOptions(),
        stop=stop_texts(stop),
        batch_size=batch_size,
        names=tuple(names),
    )
    return request, tokenizer


def usual_answer(chat: Chat | None) -> int:
    """How many tokens an answer has at most, where nobody says it."""
    return USUAL_ANSWER if chat is None else USUAL_REPLY


def _encode(tokenizer: FolderTokenizer, prompt: str, config: ModelConfig) -> list[int]:
    ids = tokenizer.encode(prompt)
    if not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]  # an empty prompt asks for a text from its beginning
    if (size := tokenizer.vocabulary_size) > config.vocab_size:
        raise KrakenError(
            f"the tokenizer has ids up to {size - 1} and the model a vocabulary of "
            f"{config.vocab_size}: use the tokenizer that the model was trained with"
        )
    return ids


def _answer(rank: Rank, request: Request) -> None:
    dtype = request.dtype
    if dtype == "auto":
        dtype = "bfloat16" if rank.device.type == "cuda" else "float32"
    engine = Engine.load(request.directory, rank, DTYPES[dtype], request.options)
    tokenizer = read_tokenizer(request.directory) if request.stop and rank.index == 0 else None
    for batch in request.batches():
        start = time.perf_counter()
        for tokens in engine.generate(
            request.prompts[batch.start : batch.stop],
            max_new_tokens=request.max_new_tokens,
            sampling=request.sampling,
            eos_token_ids=request.eos_token_ids,
            ended=_stopping(request, batch, tokenizer) if request.stop else None,
            first_sequence=batch.start,
        ):
            if rank.index == 0:
                rank.emit(Step(tokens, time.perf_counter() - start, batch.start))
    engine.connections.close()


def _stopping(request: Request, batch: range, tokenizer: FolderTokenizer | None) -> Ended:
    """Finds the stop texts; where there is no tokenizer nobody asks."""
    if tokenizer is None:
        return lambda tokens: [False] * len(tokens)
    answers = [request.answer(tokenizer, index) for index in batch]

    def ended(tokens: list[int]) -> list[bool]:
        for answer, token in zip(answers, tokens, strict=True):
            answer.add(token)
        return [answer.finish_reason is not None for answer in answers]

    return ended
