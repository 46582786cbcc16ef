"""Choosing tokens: against definitions written out, and alike for every division."""

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from krakenlm.engine.sampling import Sampler, Sampling
from krakenlm.errors import KrakenError

LOGITS = torch.tensor([[0.1, 2.0, -1.0, 1.5, 0.3], [3.0, 0.0, 2.9, -2.0, 1.0]])
GONE = float("-inf")

KINDS = {
    "greedy": Sampling(),
    "temperature": Sampling(temperature=0.8, seed=5),
    "hot": Sampling(temperature=3.0, seed=5),
    "one": Sampling(temperature=1.0, top_k=1),
    "top_k": Sampling(temperature=1.2, top_k=7, seed=2),
    "all_but_one": Sampling(temperature=1.2, top_k=299, seed=2),
    "over_all": Sampling(temperature=1.2, top_k=1000, seed=2),
    "narrow": Sampling(temperature=1.0, top_p=0.2, seed=3),
    "top_p": Sampling(temperature=0.9, top_p=0.8, seed=3),
    "nearly_all": Sampling(temperature=4.0, top_p=0.99999, seed=3),
    "both": Sampling(temperature=1.5, top_k=90, top_p=0.7, seed=4),
}


class Exchange:
    """Gathers between threads; remembers how much the largest message held."""

    def __init__(self, ranks):
        self.barrier = threading.Barrier(ranks, timeout=60)
        self.parts = [None] * ranks
        self.largest = 0

    def gather(self, rank):
        def gather(x):
            self.parts[rank] = x
            self.barrier.wait()
            stacked = torch.stack(self.parts)
            self.largest = max(self.largest, x.numel())
            self.barrier.wait()
            return stacked

        return gather


def whole(sampling, steps):
    """Tokens of one rank that holds all; ``steps`` are logits, one [B, V] after the other."""
    sampler = Sampler(sampling, vocab_size=steps[0].shape[1], first_token=0)
    return [sampler(logits).tolist() for logits in steps]


def divided(sampling, steps, widths):
    """Tokens of ranks that hold slices of these widths, and the largest message's size."""
    vocab_size = steps[0].shape[1]
    assert sum(widths) == vocab_size
    exchange = Exchange(len(widths))

    def run(rank):
        first = sum(widths[:rank])
        sampler = Sampler(
            sampling, vocab_size=vocab_size, first_token=first, gather=exchange.gather(rank)
        )
        try:
            return [sampler(logits[:, first : first + widths[rank]]).tolist() for logits in steps]
        except BaseException:
            exchange.barrier.abort()
            raise

    with ThreadPoolExecutor(len(widths)) as pool:
        tokens, *others = pool.map(run, range(len(widths)))
    assert all(other == tokens for other in others)
    return tokens, exchange.largest


def expected(logits, sampling):
    """Probabilities [V] of one row's tokens, the definition step by step."""
    order = sorted(range(len(logits)), key=lambda token: (-logits[token], token))
    order = order[: sampling.top_k or len(order)]
    weights = (torch.tensor(logits).double() / sampling.temperature).softmax(-1)[order]
    total, kept = 0.0, {}
    for token, share in zip(order, (weights / weights.sum()).tolist(), strict=True):
        if total < sampling.top_p - 1e-12:
            kept[token] = share
        total += share
    return torch.tensor([kept.get(token, 0.0) / sum(kept.values()) for token in range(len(logits))])


def assert_follow(tokens, probabilities):
    """Chi-square of the counts, at five standard deviations."""
    wanted = probabilities.flatten().double() * len(tokens)
    counts = torch.bincount(torch.tensor(tokens), minlength=len(wanted)).double()
    possible = wanted > 0
    assert not counts[~possible].any()
    freedom = int(possible.sum()) - 1
    chi_square = ((counts - wanted)[possible] ** 2 / wanted[possible]).sum()
    assert chi_square < freedom + 5 * (2 * freedom) ** 0.5 + 1e-9


def logits_of_kind(kind):
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(4, 5, 300, generator=generator)
    if kind == "ties":
        logits = logits.round()
    if kind == "equal":
        logits = torch.full_like(logits, -0.7)
    if kind == "minus infinity":
        logits[torch.rand(logits.shape, generator=generator) < 0.9] = GONE
        logits[..., :150] = GONE
        logits[..., 299] = 0.0
    return list(logits)


WIDTHS = [
    (300,),
    (150, 150),
    (100, 101, 99),
    (0, 298, 1, 1),
    (43, 43, 43, 43, 43, 43, 42),
    (150, 0, 0, 20, 30, 100, 0),
]


@pytest.mark.parametrize("widths", WIDTHS, ids=str)
@pytest.mark.parametrize("kind", ["any", "ties", "equal", "minus infinity"])
@pytest.mark.parametrize("name", KINDS)
def test_the_division_changes_no_token(name, kind, widths):
    steps = logits_of_kind(kind)
    tokens, _ = divided(KINDS[name], steps, widths)
    assert tokens == whole(KINDS[name], steps)


def test_the_division_of_a_real_vocabulary_changes_no_token():
    steps = list(3 * torch.randn(2, 2, 50257, generator=torch.Generator().manual_seed(0)))
    for sampling in KINDS.values():
        tokens, _ = divided(sampling, steps, (12000, 20257, 18000))
        assert tokens == whole(sampling, steps)


def test_greedy_is_the_argmax():
    assert whole(Sampling(), [LOGITS]) == [[1, 0]]
    for kind in ("any", "minus infinity"):
        steps = logits_of_kind(kind)
        assert whole(Sampling(), steps) == [logits.argmax(-1).tolist() for logits in steps]


def test_greedy_takes_the_lowest_of_equals():
    logits = torch.tensor([[0.0, 5.0, 1.0, 5.0, 5.0]])
    assert divided(Sampling(), [logits], (1, 2, 2))[0] == [[1]]
    assert divided(Sampling(), [logits[:, [0, 2, 1, 3, 4]]], (2, 2, 1))[0] == [[2]]


def test_the_zeros_of_both_signs_are_equal():
    for sampling in (Sampling(), KINDS["one"]):
        assert divided(sampling, [torch.tensor([[-0.0, 0.0, -1.0, 0.0]])], (1, 3))[0] == [[0]]


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=1.3, top_k=1),
        Sampling(temperature=1e-9),
        Sampling(temperature=1e-310, top_p=0.9),
        Sampling(temperature=1e-310, top_k=5, top_p=0.9),
        Sampling(temperature=0.5, top_p=1e-9),
    ],
    ids=str,
)
def test_what_leaves_one_token_is_greedy(sampling):
    for kind in ("any", "minus infinity"):
        steps = logits_of_kind(kind)
        assert whole(sampling, steps) == whole(Sampling(), steps)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0.7),
        Sampling(temperature=2.0),
        Sampling(temperature=1e308),
        Sampling(temperature=1.0, top_k=4),
        Sampling(temperature=0.7, top_k=3),
        Sampling(temperature=0.7, top_p=0.05),
        Sampling(temperature=0.7, top_p=0.5),
        Sampling(temperature=3.0, top_p=0.8),
        Sampling(temperature=1.0, top_p=0.95),
        Sampling(temperature=3.0, top_k=6, top_p=0.8),
    ],
    ids=str,
)
def test_draws_follow_the_tempered_truncated_probabilities(sampling):
    row = [0.1, 2.0, -1.0, 1.5, GONE, 0.3, 1.5, 0.9, 1.5, -3.0]
    logits = torch.tensor(row).expand(20000, -1)
    tokens, _ = divided(sampling, [logits], (3, 0, 7))
    assert_follow(tokens[0], expected(row, sampling))


@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.75, 0.999])
def test_a_wide_nucleus_is_exact(top_p):
    # Equal logits make the sum meet top_p exactly, where rounding would decide.
    row = [0.0] * 100 + [1.0] * 200 + [-30.0] * 100
    sampling = Sampling(temperature=1.0, top_p=top_p)
    (tokens,), _ = divided(sampling, [torch.tensor(row).expand(8000, -1)], (150, 250))
    assert_follow(tokens, expected(row, sampling))
    (tokens,), _ = divided(sampling, [torch.zeros(8000, 100)], (30, 70))
    assert_follow(tokens, expected([0.0] * 100, sampling))


def test_rounding_adds_no_token_to_a_nucleus_that_is_met_exactly():
    for vocab_size in range(8, 60):
        row = torch.zeros(vocab_size)
        row[:6] = 1.1
        sampling = Sampling(temperature=1.0, top_p=float(row.double().softmax(-1)[:6].sum()))
        steps = [row.expand(500, -1)]
        (tokens,), _ = divided(sampling, steps, (vocab_size - 2, 2))
        assert set(tokens) == set(range(6))


def test_equals_at_the_boundary_of_top_k_are_kept_by_lowest_id():
    logits = torch.tensor([1.0, 0.0, 2.0, 1.0, 1.0]).expand(2000, -1)
    for top_k, kept in ((2, {0, 2}), (3, {0, 2, 3}), (4, {0, 2, 3, 4})):
        (tokens,), _ = divided(Sampling(temperature=1.0, top_k=top_k), [logits], (2, 3))
        assert set(tokens) == kept


def test_one_sequence_follows_the_probabilities_over_its_steps():
    sampling = Sampling(temperature=0.7, seed=9)
    tokens = whole(sampling, [LOGITS[:1]] * 5000)
    assert_follow([token for (token,) in tokens], expected(LOGITS[0].tolist(), sampling))


def test_sequences_and_steps_are_independent():
    logits = torch.zeros(2, 4)
    even = torch.full((16,), 1 / 16)
    tokens = whole(Sampling(temperature=1.0), [logits] * 8000)
    assert_follow([4 * one + other for one, other in tokens], even)
    first = [one for one, _ in tokens]
    assert_follow(
        [4 * one + other for one, other in zip(first[::2], first[1::2], strict=True)], even
    )


def test_neighbouring_seeds_are_independent():
    logits = torch.zeros(8000, 4)
    (one,), (other,) = (whole(Sampling(temperature=1.0, seed=seed), [logits]) for seed in (0, 1))
    assert_follow([4 * a + b for a, b in zip(one, other, strict=True)], torch.full((16,), 1 / 16))


def test_the_seed_decides_the_draws():
    def draws(seed):
        return whole(Sampling(temperature=1.0, seed=seed), [LOGITS] * 20)

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)
    assert draws(2**63 - 1) != draws(0)


def test_a_row_draws_the_same_whatever_the_others_are():
    for sampling in KINDS.values():
        steps = logits_of_kind("any")
        alone = whole(sampling, [logits[:1] for logits in steps])
        assert alone == [tokens[:1] for tokens in whole(sampling, steps)]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_logits_are_taken_as_they_are(dtype):
    steps = [logits.to(dtype) for logits in logits_of_kind("any")]
    for sampling in KINDS.values():
        assert whole(sampling, steps) == whole(sampling, [logits.float() for logits in steps])


@pytest.mark.parametrize(
    ("name", "most"),
    [("greedy", 2), ("temperature", 2), ("top_k", 7), ("narrow", 66), ("both", 90)],
)
def test_ranks_exchange_candidates_only(name, most):
    logits = 3 * torch.randn(1, 5000, generator=torch.Generator().manual_seed(0))
    _, largest = divided(KINDS[name], [logits], (2000, 3000))
    assert largest <= most


def test_the_nucleus_grows_no_further_than_needed():
    logits = torch.cat([torch.zeros(1, 200), torch.full((1, 9800), -20.0)], dim=1)
    _, largest = divided(Sampling(temperature=1.0, top_p=0.9), [logits], (5000, 5000))
    assert largest == 4 * 64 + 2


def test_tokens_are_int64_on_the_logits_device():
    for sampling in KINDS.values():
        token_B = Sampler(sampling, vocab_size=5, first_token=0)(LOGITS)
        assert token_B.dtype == torch.int64
        assert token_B.shape == (2,)
        assert token_B.device == LOGITS.device


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_k", -1),
        ("top_p", 0.0),
        ("top_p", 1.5),
    ],
)
def test_values_out_of_range_are_refused(field, value):
    with pytest.raises(KrakenError, match=field.replace("_", "-")):
        Sampling(**{field: value})
