"""One batch under way: its cache, each sequence's place in it, and its captured passes.

Shape letters: see ``krakenlm.model``; V is this rank's slice of the vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor

from krakenlm.engine.capture import Captured, Recordable, capture, not_recorded
from krakenlm.engine.rank_model import RankModel
from krakenlm.model.attention import Keep
from krakenlm.model.cache import KVCache
from krakenlm.model.cached_attention import DecodeCore, PrefillCore
from krakenlm.model.decoder import BlockWrapper
from krakenlm.model.wiring import Pass, interleave, run

BUCKET = 128
"""Decode looks at the cache in steps of so many positions, and captures one pass a step."""

_COPYING = 3
"""Looking at a position of a part of the cache costs so much more than at one of all of it.

A batched product on the CPU copies what does not lie densely before it reads it.
"""


class _Chunk(NamedTuple):
    """A part of the prompts: from which token to which, and whose queries the last layer keeps."""

    start: int
    end: int
    kept: list[int]
    kept_B: Tensor


class _PromptPass(NamedTuple):
    """A captured pass over prompts of some lengths, and what it reads, which has to stay."""

    lengths: list[int]
    ids_BT: Tensor
    chunks: list[_Chunk]
    captured: Captured


def whole_buckets(positions: int) -> int:
    """A number of positions, rounded up to whole buckets."""
    return -(-positions // BUCKET) * BUCKET


class Session:
    """One batch: its cache, its place in each sequence, and the passes captured so far.

    Args:
        model: what runs.
        batch: number of sequences.
        capacity: positions that the cache has for each.
        keep: takes the session when its ``with`` statement ends well, for a next batch.
    """

    def __init__(
        self, model: RankModel, batch: int, capacity: int, keep: Callable[["Session"], None]
    ) -> None:
        self._model = model
        self._keep = keep
        device = model.rank.device
        self.cache = KVCache(
            model.decoder.config, batch=batch, capacity=capacity, dtype=model.dtype, device=device
        )
        self._passes: dict[int, Captured] = {}
        self._prompt_pass: _PromptPass | None = None
        self._ids_B1 = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self._positions_B = torch.zeros(batch, dtype=torch.int64, device=device)
        self._prompts: Sequence[Sequence[int]] = []
        self._longest = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if exception[0] is None:
            self._keep(self)

    def begin(self, prompts: Sequence[Sequence[int]]) -> None:
        """Take new prompts; what the cache holds is overwritten before it is read."""
        self._prompts = prompts
        self._longest = max(map(len, prompts))
        self._positions_B.copy_(torch.tensor([len(prompt) - 1 for prompt in prompts]))

    @torch.no_grad()
    def prefill(self, wrap: BlockWrapper | None = None) -> Tensor:
        """Run the prompts; logits_BV of each one's last position, valid until the next call."""
        model = self._model
        model.rank.activity(f"prefilling {len(self._prompts)} x {self._longest} tokens")
        ids_BT = torch.zeros(len(self._prompts), self._longest, dtype=torch.int64)
        for row, prompt in enumerate(self._prompts):
            ids_BT[row, : len(prompt)] = torch.tensor(prompt)
        if wrap is not None or not model.options.graph_prefill:
            ids_BT = ids_BT.to(model.rank.device)
            return self._run_prompts(ids_BT, self._chunks(), not_recorded, wrap)
        return self._captured_prompts(ids_BT)

    def _captured_prompts(self, ids_BT: Tensor) -> Tensor:
        """Replay the last prompts' pass where these are as long, or capture another one."""
        device = self._model.rank.device
        lengths = [len(prompt) for prompt in self._prompts]
        known = self._prompt_pass
        if known is not None and known.lengths == lengths:
            known.ids_BT.copy_(ids_BT)
            return known.captured.replay()
        self._prompt_pass = known = None  # its memory, before more is asked for
        ids_BT, chunks = ids_BT.to(device), self._chunks()
        captured = capture(lambda recordable: self._run_prompts(ids_BT, chunks, recordable), device)
        self._prompt_pass = _PromptPass(lengths, ids_BT, chunks, captured)
        return captured.result

    def _chunks(self) -> list[_Chunk]:
        chunks = []
        for start, end in _chunk_bounds(self._longest, self._model.options.prefill_chunks):
            kept = [min(max(len(prompt) - 1, start), end - 1) for prompt in self._prompts]
            kept_B = torch.tensor(kept, device=self._model.rank.device)
            chunks.append(_Chunk(start, end, kept, kept_B))
        return chunks

    def _run_prompts(
        self,
        ids_BT: Tensor,
        chunks: Sequence[_Chunk],
        recordable: Recordable,
        wrap: BlockWrapper | None = None,
    ) -> Tensor:
        """One pass; all that it reads is on the device, where it may be captured."""
        model = self._model
        passes = [self._chunk(ids_BT, chunk, recordable, wrap) for chunk in chunks]
        results = [run(passes[0])] if len(passes) == 1 else interleave(passes)
        x_1B1D = torch.stack([results[i][:, b] for b, i in enumerate(self._chunk_of(chunks))], 1)
        return model.head(model.decoder.finish(x_1B1D)[:, 0])

    def _chunk(
        self, ids_BT: Tensor, chunk: _Chunk, recordable: Recordable, wrap: BlockWrapper | None
    ) -> Pass:
        model = self._model
        start, end = chunk.start, chunk.end
        positions_1T = torch.arange(start, end, device=ids_BT.device)[None]
        return model.decoder.steps(
            model.decoder.embed_tokens(ids_BT[:, start:end]),
            positions_1T,
            PrefillCore(self.cache, start, chunk.kept_B),
            recordable(model.connections.streams),
            wrap=model.wrapper(wrap, recordable),
            keep=Keep([position - start for position in chunk.kept]),
        )

    def _chunk_of(self, chunks: Sequence[_Chunk]) -> list[int]:
        """For each prompt, which chunk its last token lies in."""
        ends = [chunk.end for chunk in chunks]
        return [next(i for i, end in enumerate(ends) if len(p) <= end) for p in self._prompts]

    def decode(self, next_B: Tensor, wrap: BlockWrapper | None = None) -> Tensor:
        """Run one new token of each sequence; logits_BV, valid until the next call."""
        self._model.rank.activity("decoding")
        self._ids_B1.copy_(next_B.unsqueeze(1))
        self._positions_B += 1
        self._longest += 1
        end = self._positions_to_look_at()
        if wrap is not None or not self._model.options.capture:
            with torch.no_grad():
                return self._one_token(end, not_recorded, wrap)
        if end not in self._passes:
            self._passes[end] = capture(
                lambda recordable: self._one_token(end, recordable), self._model.rank.device
            )
            return self._passes[end].result
        return self._passes[end].replay()

    def _positions_to_look_at(self) -> int:
        end = whole_buckets(self._longest)
        if self.cache.keys_LBGCE.is_cpu and end * _COPYING > self.cache.capacity:
            return self.cache.capacity
        return end

    def _one_token(
        self, end: int, recordable: Recordable, wrap: BlockWrapper | None = None
    ) -> Tensor:
        model = self._model
        decoder = model.decoder
        steps = decoder.steps(
            decoder.embed_tokens(self._ids_B1),
            self._positions_B[:, None],
            DecodeCore(self.cache, self._positions_B, end),
            recordable(model.connections.streams),
            wrap=model.wrapper(wrap, recordable),
        )
        return model.head(decoder.finish(run(steps))[:, 0])


def _chunk_bounds(tokens: int, chunks: int) -> list[tuple[int, int]]:
    """Even parts of a prompt, none of them empty."""
    chunks = min(chunks, tokens)
    return [(tokens * i // chunks, tokens * (i + 1) // chunks) for i in range(chunks)]
