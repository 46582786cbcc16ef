"""Choosing the next token from the logits of the last position, which ranks may hold in slices.

Each rank has the logits of a contiguous range of the vocabulary. What ranks exchange are
candidates, never whole rows, and the choice does not depend on how the vocabulary is divided.

Shape letters: B sequences; V a rank's slice of the vocabulary; R ranks; K candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from krakenlm.errors import RequestError

Gather = Callable[[Tensor], Tensor]
"""Takes a tensor of one shape and dtype on all ranks; returns them stacked, [R, *shape], in rank
order, on the same device, with the same bytes on every rank."""

# Candidates a rank sends first when it looks for a nucleus, and how many times more when they do
# not suffice.
_NUCLEUS_CANDIDATES = 64
_NUCLEUS_GROWTH = 4
# A normaliser's last digits depend on how the vocabulary is divided. A sum this close to top_p
# counts as reaching it, so that those digits decide nothing, even if the logits are all equal.
_NUCLEUS_TOLERANCE = 1e-9

_LOW_HALF = (1 << 32) - 1
# SplitMix64's constants (Steele, Lea and Flood 2014), as signed numbers.
_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_FACTORS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How tokens are chosen; the defaults are greedy.

    Attributes:
        temperature: 0 takes the likeliest token; above, logits are divided by it.
        top_k: keep only so many likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities reach this sum; 1 keeps all.
        seed: of the random numbers.

    Raises:
        RequestError: a value out of range.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.temperature < float("inf"):
            raise RequestError(f"--temperature {self.temperature}: needs 0 or more")
        if self.top_k < 0:
            raise RequestError(f"--top-k {self.top_k}: needs 1 or more, or 0 for all")
        if not 0 <= self.seed < 1 << 63:
            raise RequestError(f"--seed {self.seed}: needs 0 or more and less than 2**63")
        if not 0.0 < self.top_p <= 1.0:
            raise RequestError(f"--top-p {self.top_p}: needs more than 0 and at most 1")


class Sampler:
    """Draws tokens one step after the other; equal logits and seed give equal tokens.

    Greedy takes the highest logit; the lowest id among equals. Otherwise a token is drawn by the
    Gumbel-max trick (Gumbel 1954; Maddison, Tarlow and Minka 2014): if G_i are independent
    standard Gumbel variables, the i with the highest l_i / T + G_i is distributed as
    softmax(l / T). A maximum, unlike a draw from a cumulated distribution, is found slice by
    slice without the normaliser. G_i is a function of seed, step, sequence and token id alone, so
    that the number of ranks changes no token. With ``top_k`` or ``top_p`` the maximum is taken
    over the tokens that are kept, which are the first ones when ordered by logit, the lowest id
    first among equals.

    Args:
        sampling: how tokens are chosen.
        vocab_size: of the whole vocabulary.
        first_token: the id of this rank's first logit.
        gather: exchanges what ranks must tell each other; None where one rank holds all.
        first_sequence: number of the batch's first sequence among all that share a seed.
    """

    def __init__(
        self,
        sampling: Sampling,
        *,
        vocab_size: int,
        first_token: int,
        gather: Gather | None = None,
        first_sequence: int = 0,
    ) -> None:
        self._sampling = sampling
        self._first_sequence = first_sequence
        self._vocab_size = vocab_size
        self._first_token = first_token
        self._gather = gather or _alone
        self._seed_state = int(_mix(torch.tensor(sampling.seed)))
        self._step = 0
        nothing = torch.full((1,), float("-inf"))
        # A candidate that fills up a short list: behind every token's.
        self._no_candidate = int(_pack(nothing, torch.tensor([vocab_size])))

    def __call__(self, logits_BV: Tensor) -> Tensor:
        """The next token of each sequence, [B] int64, equal on every rank.

        Args:
            logits_BV: this rank's slice; slices differ in width and may be empty. Minus infinity
                is a token that is never chosen while there is another.
        """
        sampling, first_token = self._sampling, self._first_token
        self._step += 1
        if logits_BV.shape[1] == 0:
            # One entry that never wins, so that nothing below meets an empty row.
            logits_BV = logits_BV.new_full((logits_BV.shape[0], 1), float("-inf"))
            first_token = self._vocab_size
        if sampling.temperature == 0.0:
            return self._highest(logits_BV, first_token)
        ids_1V = torch.arange(
            first_token, first_token + logits_BV.shape[1], device=logits_BV.device
        ).unsqueeze(0)
        keeps_k = 0 < sampling.top_k < self._vocab_size
        if not keeps_k and sampling.top_p == 1.0:
            return self._highest(self._noisy(logits_BV, ids_1V), first_token)
        logits_BV = logits_BV.float()
        keys_BV = _pack(logits_BV, ids_1V)
        values_BK, ids_BK = self._top_k(keys_BV) if keeps_k else self._top_p(keys_BV, logits_BV)
        chosen_B1 = self._noisy(values_BK, ids_BK).argmax(dim=-1, keepdim=True)
        return ids_BK.gather(1, chosen_B1).squeeze(1).to(logits_BV.device)

    def _highest(self, scores_BV: Tensor, first_token: int) -> Tensor:
        """The id with the highest score of all slices, the lowest among equals, [B]."""
        # Of equals the first, as argmax, which in bfloat16 takes four times as long on a CPU.
        best = scores_BV.max(dim=-1, keepdim=True)
        # Float64 holds ids below 2**53 exactly, so both go in one message.
        pair_B2 = torch.cat([best.values.double(), best.indices + first_token], dim=1)
        score_RB, id_RB = self._gather(pair_B2).unbind(-1)
        return id_RB.masked_fill(score_RB < score_RB.amax(0), self._vocab_size).amin(0).long()

    def _noisy(self, values_BV: Tensor, ids_BV: Tensor) -> Tensor:
        """Scores whose maximum is the token drawn, [B, V] float64."""
        temperature = self._sampling.temperature
        first = self._first_sequence
        rows = range(first, first + values_BV.shape[0])
        noise_BV = _gumbel(self._seed_state, self._step, rows, ids_BV)
        # l + T G where T < 1 and l / T + G elsewhere have one maximum, and neither overflows.
        return noise_BV.mul_(min(temperature, 1.0)).add_(
            values_BV, alpha=1.0 / max(temperature, 1.0)
        )

    def _candidates(self, keys_BV: Tensor, count: int) -> Tensor:
        """This rank's ``count`` highest keys in no order, filled up where it has fewer."""
        best_BK = keys_BV.topk(min(count, keys_BV.shape[1]), dim=-1, sorted=False).values
        missing = (best_BK.shape[0], count - best_BK.shape[1])
        return torch.cat([best_BK, best_BK.new_full(missing, self._no_candidate)], dim=1)

    def _top_k(self, keys_BV: Tensor) -> tuple[Tensor, Tensor]:
        """The ``top_k`` best tokens, and of these the nucleus: logits and ids on the CPU.

        Returns:
            values_BK float64 in falling order, minus infinity for a token that is dropped; ids_BK.
        """
        keys_RBK = self._gather(self._candidates(keys_BV, self._sampling.top_k)).cpu()
        keys_BK = keys_RBK.transpose(0, 1).flatten(1).topk(self._sampling.top_k, dim=-1).values
        values_BK, ids_BK = _unpack(keys_BK)
        if self._sampling.top_p < 1.0:
            weights_BK = self._weights(values_BK, values_BK[:, :1])
            reached_BK = weights_BK.cumsum(-1) / weights_BK.sum(-1, keepdim=True)
            values_BK = self._keep_nucleus(values_BK, reached_BK)
        return values_BK, ids_BK

    def _top_p(self, keys_BV: Tensor, logits_BV: Tensor) -> tuple[Tensor, Tensor]:
        """The fewest likeliest tokens of the vocabulary that reach ``top_p``, as ``_top_k``."""
        # With the bits of its keys a rank sends those of its maximum and normaliser.
        normaliser_B2 = self._normaliser(logits_BV).view(torch.int64)
        count = _NUCLEUS_CANDIDATES
        while True:
            count = min(count, self._vocab_size)
            message_BK = torch.cat([self._candidates(keys_BV, count), normaliser_B2], dim=1)
            gathered_RBK = self._gather(message_BK).cpu()
            keys_RBK = gathered_RBK[..., :count]
            normaliser_RB2 = gathered_RBK[..., count:].contiguous().view(torch.float64)
            keys_BK = keys_RBK.transpose(0, 1).flatten(1).sort(dim=-1, descending=True).values
            values_BK, ids_BK = _unpack(keys_BK)
            highest_RB1, sum_RB1 = normaliser_RB2[..., :1], normaliser_RB2[..., 1:]
            highest_B1 = highest_RB1.amax(0)
            total_B1 = (sum_RB1 * self._weights(highest_RB1, highest_B1)).sum(0)
            reached_BK = self._weights(values_BK, highest_B1).cumsum(-1) / total_B1
            # No token that a rank kept to itself is above the lowest that it sent.
            certain_BK = keys_BK >= keys_RBK.amin(-1).amax(0).unsqueeze(1)
            enough_B = (certain_BK & (reached_BK >= self._target())).any(-1)
            # Every rank sees the same bytes, so all of them go on or all stop.
            if count == self._vocab_size or bool(enough_B.all()):
                return self._keep_nucleus(values_BK, reached_BK), ids_BK
            count *= _NUCLEUS_GROWTH

    def _weights(self, values_BK: Tensor, highest_B1: Tensor) -> Tensor:
        """Probabilities times a constant of each row, at most 1, float64."""
        return ((values_BK.double() - highest_B1) / self._sampling.temperature).exp_()

    def _normaliser(self, logits_BV: Tensor) -> Tensor:
        """The highest logit of this slice, and the sum of weights relative to it, [B, 2]."""
        # Where all are minus infinity the difference to a finite maximum makes their weight 0.
        lowest = torch.finfo(torch.float32).min
        highest_B1 = logits_BV.amax(-1, keepdim=True).clamp(min=lowest).double()
        sum_B1 = self._weights(logits_BV, highest_B1).sum(-1, keepdim=True)
        return torch.cat([highest_B1, sum_B1], dim=1)

    def _target(self) -> float:
        return self._sampling.top_p * (1.0 - _NUCLEUS_TOLERANCE)

    def _keep_nucleus(self, values_BK: Tensor, reached_BK: Tensor) -> Tensor:
        """Minus infinity for the tokens whose predecessors already reach ``top_p``."""
        dropped_BK = torch.zeros_like(values_BK, dtype=torch.bool)
        dropped_BK[:, 1:] = reached_BK[:, :-1] >= self._target()
        return values_BK.masked_fill(dropped_BK, float("-inf"))


def _alone(x: Tensor) -> Tensor:
    return x.unsqueeze(0)


def _pack(logits_BV: Tensor, ids_BV: Tensor) -> Tensor:
    """Keys [B, V] int64 that are ordered as the float32 logits; a lower id is higher among equals.

    The keys of different tokens differ, so "the k highest" are the same tokens everywhere.
    """
    # A float's bits, read as an integer, rise with it if positive and fall with it if negative.
    # Adding 0 makes -0 the 0 it equals.
    bits_BV = (logits_BV + 0.0).view(torch.int32)
    ordered_BV = _flip_negative(bits_BV).long()
    return ordered_BV.bitwise_left_shift_(32).add_(_LOW_HALF).sub_(ids_BV)


def _unpack(keys_BK: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [B, K] float64 and ids [B, K] of keys."""
    bits_BK = _flip_negative((keys_BK >> 32).int())
    return bits_BK.view(torch.float32).double(), _LOW_HALF - (keys_BK & _LOW_HALF)


def _flip_negative(bits: Tensor) -> Tensor:
    """All bits but the sign's inverted where the sign is set; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


def _gumbel(seed_state: int, step: int, rows: range, ids_BV: Tensor) -> Tensor:
    """Standard Gumbel noise for the tokens ``ids_BV`` ([1, V] or [B, V]), [B, V] float64.

    A hash rather than a generator, so that a rank draws for its own tokens only and candidates
    cost only what they are; each sequence and step is a SplitMix64 stream indexed by token id.
    """
    row_B1 = torch.arange(rows.start, rows.stop, device=ids_BV.device).unsqueeze(1)
    state_B1 = _mix((row_B1 + (step << 32)) * _GAMMA + seed_state)
    bits_BV = _mix(torch.add(state_B1, ids_BV, alpha=_GAMMA))
    # The middles of 2**52 equal parts of (0, 1): exact, and neither logarithm meets 0.
    uniform_BV = (bits_BV >> 12).double().mul_(2.0**-52).add_(0.5 + 2.0**-53)
    return uniform_BV.log_().neg_().log_().neg_()


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser of int64, whose products wrap; in place, for speed."""
    shifted = torch.empty_like(x)
    for shift, factor in ((30, _FACTORS[0]), (27, _FACTORS[1]), (31, None)):
        # The mask takes away the copies of the sign that the shift brings in.
        torch.bitwise_right_shift(x, shift, out=shifted).bitwise_and_((1 << (64 - shift)) - 1)
        x.bitwise_xor_(shifted)
        if factor is not None:
            x.mul_(factor)
    return x
