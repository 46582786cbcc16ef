"""One batch under way: its cache, each sequence's place in it, and the captured decode passes.

Shape letters: see ``krakenlm.model``; V is this rank's slice of the vocabulary.
"""

from collections.abc import Callable, Sequence
from typing import Self

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


def whole_buckets(positions: int) -> int:
    """A number of positions, rounded up to whole buckets."""
    return -(-positions // BUCKET) * BUCKET


class Session:
    """One batch: its cache, its place in each sequence, and decode passes captured so far.

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
        """Run the prompts; logits_BV of each one's last position."""
        model = self._model
        decoder = model.decoder
        model.rank.activity(f"prefilling {len(self._prompts)} x {self._longest} tokens")
        ids_BT = torch.zeros(len(self._prompts), self._longest, dtype=torch.int64)
        for row, prompt in enumerate(self._prompts):
            ids_BT[row, : len(prompt)] = torch.tensor(prompt)
        ids_BT = ids_BT.to(model.rank.device)
        bounds = _chunk_bounds(self._longest, model.options.prefill_chunks)
        passes = [self._chunk(ids_BT, start, end, wrap) for start, end in bounds]
        results = [run(passes[0])] if len(passes) == 1 else interleave(passes)
        x_1B1D = torch.stack([results[i][:, b] for b, i in enumerate(self._chunk_of(bounds))], 1)
        return model.head(decoder.finish(x_1B1D)[:, 0])

    def _chunk(self, ids_BT: Tensor, start: int, end: int, wrap: BlockWrapper | None) -> Pass:
        model = self._model
        kept = [min(max(len(prompt) - 1, start), end - 1) for prompt in self._prompts]
        positions_1T = torch.arange(start, end, device=ids_BT.device)[None]
        return model.decoder.steps(
            model.decoder.embed_tokens(ids_BT[:, start:end]),
            positions_1T,
            PrefillCore(self.cache, start, kept),
            model.connections.streams,
            wrap=model.wrapper(wrap),
            keep=Keep([position - start for position in kept]),
        )

    def _chunk_of(self, bounds: Sequence[tuple[int, int]]) -> list[int]:
        """For each prompt, which chunk its last token lies in."""
        ends = [end for _, end in bounds]
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
