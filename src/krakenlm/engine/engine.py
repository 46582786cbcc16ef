"""The inference engine: prefill, and decoding token by token.

Shape letters: see ``krakenlm.model``; V is this rank's slice of the vocabulary.
"""

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Self

import torch

from krakenlm.engine.rank_model import RankModel
from krakenlm.engine.requests import check_request, refuse_not_finite
from krakenlm.engine.sampling import Sampler, Sampling
from krakenlm.engine.session import Session, whole_buckets
from krakenlm.errors import trying
from krakenlm.ranks.failures import REPORT
from krakenlm.transport.connect import Connections

Ended = Callable[[list[int]], Sequence[bool]]
"""Given one step's tokens, which sequences have ended for reasons of their text."""

# What to do where a rank fails for reasons that are not ours.
_LESS = "if memory is short, give fewer or shorter prompts or more --devices; else " + REPORT


class Engine(RankModel):
    """Answers prompts; all ranks call the same methods in the same order.

    Each rank ends a pass with the same hidden states and the logits of its slice of the
    vocabulary.
    """

    _idle: Session | None = None

    def with_connections(self, connections: Connections) -> Self:
        """The same weights, summed over other connections."""
        other = super().with_connections(connections)
        other._idle = None  # its captured passes sum over the old ones
        return other

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        sampling: Sampling | None = None,
        eos_token_ids: Collection[int] = (),
        ended: Ended | None = None,
        first_sequence: int = 0,
    ) -> Iterator[list[int]]:
        """Yield the next token of every sequence, step by step, on every rank.

        Ends after ``max_new_tokens`` or when each sequence has met an end token; a sequence that
        is done repeats its last token.

        Args:
            prompts: token ids, of any lengths.
            max_new_tokens: at most so many steps.
            sampling: how tokens are chosen; greedy by default.
            eos_token_ids: tokens that end an answer; they are yielded too.
            ended: rank 0 asks it about each step's tokens, and the others hear what it says; all
                ranks give one, or none does.
            first_sequence: see ``Sampler``.

        Raises:
            KrakenError: prompts that cannot be answered, weights that give no finite logits.
        """
        check_request(self.config, prompts, max_new_tokens)
        sampler = self.sampler(sampling or Sampling(), first_sequence)
        with self.session(prompts, max_new_tokens) as session:
            done = [False] * len(prompts)
            with trying("running the prompts", _LESS):
                logits_BV = session.prefill()
                refuse_not_finite(logits_BV)
                next_B = sampler(logits_BV)
                last = next_B.tolist()
            for _ in range(max_new_tokens - 1):
                yield last
                done = [e or token in eos_token_ids for e, token in zip(done, last, strict=True)]
                if ended is not None:
                    told = self._told_by_rank_0(ended, last)
                    done = [e or t for e, t in zip(done, told, strict=True)]
                if all(done):
                    return
                with trying("generating tokens", _LESS):
                    next_B = sampler(session.decode(next_B))
                    new = next_B.tolist()
                last = [o if e else n for e, o, n in zip(done, last, new, strict=True)]
            yield last

    def _told_by_rank_0(self, ended: Ended, tokens: list[int]) -> list[bool]:
        says = list(ended(tokens)) if self.rank.index == 0 else [False] * len(tokens)
        flags_B = torch.tensor(says, dtype=torch.uint8, device=self.rank.device)
        return self.connections.everyone.gather(flags_B)[0].bool().tolist()

    def sampler(self, sampling: Sampling, first_sequence: int = 0) -> Sampler:
        """Chooses tokens from the logits of this rank's slice, with the other ranks."""
        return Sampler(
            sampling,
            vocab_size=self.config.vocab_size,
            first_token=self.shard.head_rows.start,
            gather=self.connections.everyone.gather,
            first_sequence=first_sequence,
        )

    def session(self, prompts: Sequence[Sequence[int]], max_new_tokens: int) -> Session:
        """Room for one batch of prompts and their answers; use it in a ``with`` statement.

        The last one's memory and captured passes are used again where they fit.
        """
        capacity = whole_buckets(max(map(len, prompts)) + max_new_tokens)
        session, self._idle = self._idle, None
        if session is None or (session.cache.batch, session.cache.capacity) != (
            len(prompts),
            capacity,
        ):
            del session
            session = Session(self, len(prompts), capacity, self._keep_for_next)
        session.begin(prompts)
        return session

    def _keep_for_next(self, session: Session) -> None:
        self._idle = session
