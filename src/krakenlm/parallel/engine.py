"""The inference engine: one rank's part of a model, prefill, and decoding token by token.

Shape letters: see ``krakenlm.model``; V is the vocabulary.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch import distributed as dist
from torch.nn import functional as F

from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.model.attention import SdpaCore
from krakenlm.model.cache import KVCache
from krakenlm.model.checkpoint import read_config, read_shard
from krakenlm.model.decoder import BlockWrapper, Decoder
from krakenlm.model.reduce import LocalReducer, Reducer
from krakenlm.model.shard import split
from krakenlm.parallel.collective import CollectiveReducer
from krakenlm.parallel.launch import Rank
from krakenlm.parallel.sampling import Sampler, Sampling


class Engine:
    """Runs one rank's part of a model; all ranks call the same methods in the same order.

    Every rank holds the embeddings, the final norm and the head; each ends a forward pass with
    the same hidden states, so rank 0 may choose the token for all.

    Args:
        decoder: this rank's part, evaluated only.
        head_VD: the output head's weight.
        rank: this rank.
        reducer: sums across ranks; by default what ``rank.size`` calls for.
    """

    def __init__(
        self, decoder: Decoder, head_VD: Tensor, rank: Rank, reducer: Reducer | None = None
    ) -> None:
        self.decoder = decoder.eval()
        self.head_VD = head_VD
        self.rank = rank
        self.reducer = reducer or (CollectiveReducer() if rank.size > 1 else LocalReducer())

    @classmethod
    def load(cls, directory: Path, rank: Rank, dtype: torch.dtype) -> "Engine":
        """Read this rank's slices of a checkpoint.

        Raises:
            KrakenError: see ``krakenlm.model.checkpoint`` and ``krakenlm.model.shard``.
        """
        shard = split(read_config(directory), rank.size)[rank.index]
        state = read_shard(directory, shard, dtype)
        head_VD = state.pop("lm_head.weight", state["embed_tokens.weight"])
        with torch.device("meta"):
            decoder = Decoder(shard.local_config)
        decoder.load_state_dict(state, assign=True)
        return cls(decoder.to(rank.device), head_VD.to(rank.device), rank)

    @classmethod
    def random(cls, config: ModelConfig, rank: Rank, dtype: torch.dtype) -> "Engine":
        """Random weights of a configuration's shape, for timing."""
        shard = split(config, rank.size)[rank.index]
        decoder = Decoder(shard.local_config)
        decoder.initialise()
        decoder = decoder.to(device=rank.device, dtype=dtype)
        return cls(decoder, decoder.embed_tokens.weight, rank)

    def new_cache(self, batch: int, capacity: int) -> KVCache:
        """An empty cache for this rank's heads."""
        weight = self.head_VD
        return KVCache(
            self.decoder.config,
            batch=batch,
            capacity=capacity,
            dtype=weight.dtype,
            device=weight.device,
        )

    @torch.inference_mode()
    def hidden(
        self, ids_BT: Tensor, cache: KVCache | None = None, wrap: BlockWrapper | None = None
    ) -> Tensor:
        """Hidden states h_BTD of new tokens behind those in ``cache``."""
        past = 0 if cache is None else cache.length
        positions_1T = torch.arange(past, past + ids_BT.shape[1], device=ids_BT.device)[None]
        x_BTD = self.decoder.embed_tokens(ids_BT)
        h_BTD: Tensor = self.decoder(x_BTD, positions_1T, SdpaCore(cache), self.reducer, wrap)
        if cache is not None:
            cache.advance(ids_BT.shape[1])
        return h_BTD

    @torch.inference_mode()
    def logits(self, ids_BT: Tensor, cache: KVCache | None = None) -> Tensor:
        """Logits of every new position, [B, T, V]."""
        return F.linear(self.hidden(ids_BT, cache), self.head_VD)

    @torch.inference_mode()
    def last_logits(
        self, ids_BT: Tensor, cache: KVCache | None = None, wrap: BlockWrapper | None = None
    ) -> Tensor:
        """Logits of the last position, [B, V]; the others never meet the head."""
        return F.linear(self.hidden(ids_BT, cache, wrap)[:, -1], self.head_VD)

    def generate(
        self,
        ids_BT: Tensor,
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        eos_token_ids: Collection[int] = (),
    ) -> Iterator[list[int]]:
        """Yield the next token of every sequence, step by step, on every rank.

        Ends after ``max_new_tokens`` or when each sequence has met an end token; a sequence that
        is done repeats its end token.

        Args:
            ids_BT: prompts of one length.
            max_new_tokens: at most so many steps.
            sampling: how tokens are chosen; greedy by default.
            eos_token_ids: tokens that end an answer; they are yielded too.
        """
        batch, prompt_tokens = ids_BT.shape
        check_request(self.decoder.config, ids_BT.tolist(), max_new_tokens)
        cache = self.new_cache(batch, prompt_tokens + max_new_tokens)
        sampler = Sampler(sampling or Sampling())
        done = [False] * batch
        last = [0] * batch
        ids_BT = ids_BT.to(self.rank.device)
        for _ in range(max_new_tokens):
            logits_BV = self.last_logits(ids_BT, cache)
            if cache.length == prompt_tokens:
                _refuse_not_finite(logits_BV)
            next_B = self.agree(sampler(logits_BV))
            last = [
                old if ended else new
                for ended, old, new in zip(done, last, next_B.tolist(), strict=True)
            ]
            yield last
            done = [
                ended or token in eos_token_ids for ended, token in zip(done, last, strict=True)
            ]
            if all(done):
                return
            ids_BT = next_B.unsqueeze(1)

    def agree(self, token_B: Tensor) -> Tensor:
        """Rank 0's choice, on every rank: devices of two kinds may round differently."""
        if self.rank.size > 1:
            dist.broadcast(token_B, src=0)
        return token_B


def room_for_answer(config: ModelConfig, prompt_tokens: int) -> int:
    """How many tokens may follow a prompt; the last one is never fed, so it needs no position."""
    return config.max_position_embeddings - prompt_tokens + 1


def check_request(config: ModelConfig, prompts: list[list[int]], max_new_tokens: int) -> None:
    """Refuse prompts that cannot be answered.

    Raises:
        KrakenError: an empty or over-long prompt, or a token outside the vocabulary.
    """
    limit = config.max_position_embeddings
    if max_new_tokens < 1:
        raise KrakenError(f"--max-new-tokens {max_new_tokens}: needs 1 or more")
    for prompt in prompts:
        if not prompt:
            raise KrakenError("the prompt is empty: give at least one token")
        if max_new_tokens > room_for_answer(config, len(prompt)):
            raise KrakenError(
                f"the prompt has {len(prompt)} tokens and {max_new_tokens} new ones are asked for, "
                f"but the model's context holds {limit}: shorten the prompt or --max-new-tokens"
            )
        for token in prompt:
            if not 0 <= token < config.vocab_size:
                raise KrakenError(
                    f"token {token} is outside the model's vocabulary of {config.vocab_size}: "
                    "use the tokenizer that the model was trained with"
                )


def _refuse_not_finite(logits_BV: Tensor) -> None:
    if not bool(logits_BV.isfinite().all()):
        raise KrakenError(
            "the model's logits are not finite: its weights are damaged, or overflow in this "
            "--dtype; try --dtype float32"
        )
