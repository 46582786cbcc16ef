"""A request on its way: from prompts to the ranks that answer them, token by token."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from krakenlm.config import ModelConfig
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.errors import KrakenError
from krakenlm.model.checkpoint import read_config, read_eos_token_ids
from krakenlm.parallel.devices import DTYPES, check_device, check_dtype, check_threads
from krakenlm.parallel.engine import Engine, EngineOptions
from krakenlm.parallel.launch import Rank, launch, world_size
from krakenlm.parallel.placement import check_placement
from krakenlm.parallel.requests import check_request, room_for_answer
from krakenlm.parallel.sampling import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_USUAL_ANSWER = 64


class Request(NamedTuple):
    """What every rank is told."""

    directory: Path
    prompts: list[list[int]]
    max_new_tokens: int
    sampling: Sampling
    eos_token_ids: frozenset[int]
    dtype: str
    options: EngineOptions


class Step(NamedTuple):
    """What rank 0 says: a token of each sequence, and the seconds since the prompts went in."""

    tokens: list[int]
    seconds: float


class Ranks(NamedTuple):
    """Where a request runs.

    Attributes:
        devices: ranks; None is one, and under torchrun as many as it started.
        device_type: ``auto`` uses GPUs where there are enough.
        threads: compute threads of a rank; None is one for each of its cores.
    """

    devices: int | None = None
    device_type: str = "auto"
    threads: int | None = None


def generate_tokens(request: Request, ranks: Ranks, on_step: Callable[[Step], None]) -> None:
    """Answer prompts of token ids; ``on_step`` hears each step's tokens at once.

    Raises:
        KrakenError: a request, a model or a number of devices that cannot work.
    """
    check_device(ranks.device_type)
    check_threads(ranks.threads)
    config, options = read_config(request.directory), request.options
    devices = world_size() if ranks.devices is None else ranks.devices
    check_placement(config, devices, options.placement, tensor_parallel=options.tensor_parallel)
    check_request(config, request.prompts, request.max_new_tokens)
    launch(
        _answer,
        [request],
        devices=devices,
        on_message=on_step,
        device_type=ranks.device_type,  # type: ignore[arg-type]
        threads=ranks.threads,
    )


def prepare(
    directory: Path,
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    sampling: Sampling | None = None,
    dtype: str = "auto",
    options: EngineOptions | None = None,
) -> tuple[Request, "PreTrainedTokenizerFast"]:
    """A request for texts, and the tokenizer that turns its tokens back.

    Args:
        directory: a saved model with its tokenizer.
        prompts: the texts to continue, of any lengths.
        max_new_tokens: at most so many; by default 64, or as many as the context leaves.
        sampling: greedy by default.
        dtype: ``auto`` is float32 on CPUs and bfloat16 on GPUs.
        options: how the model is spread out and run.
    """
    check_dtype(dtype)
    config = read_config(directory)
    tokenizer = load_tokenizer(directory)
    ids = [_encode(tokenizer, prompt, config) for prompt in prompts]
    if max_new_tokens is None:
        longest = max(map(len, ids), default=0)
        max_new_tokens = max(1, min(_USUAL_ANSWER, room_for_answer(config, longest)))
    request = Request(
        directory=directory,
        prompts=ids,
        max_new_tokens=max_new_tokens,
        sampling=sampling or Sampling(),
        eos_token_ids=read_eos_token_ids(directory),
        dtype=dtype,
        options=options or EngineOptions(),
    )
    return request, tokenizer


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
    engine = Engine.load(request.directory, rank, DTYPES[dtype], request.options)
    start = time.perf_counter()
    for tokens in engine.generate(
        request.prompts,
        max_new_tokens=request.max_new_tokens,
        sampling=request.sampling,
        eos_token_ids=request.eos_token_ids,
    ):
        if rank.index == 0:
            rank.emit(Step(tokens, time.perf_counter() - start))
    engine.connections.close()
