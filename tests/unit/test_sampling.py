"""Choosing tokens: against definitions written out."""

import pytest
import torch

from krakenlm.errors import KrakenError
from krakenlm.parallel.sampling import Sampler, Sampling, keep_top_k, keep_top_p

LOGITS = torch.tensor([[0.1, 2.0, -1.0, 1.5, 0.3], [3.0, 0.0, 2.9, -2.0, 1.0]])
GONE = float("-inf")


def test_greedy_is_the_argmax():
    assert Sampler(Sampling())(LOGITS).tolist() == [1, 0]


def test_top_k_keeps_the_k_highest():
    kept = keep_top_k(LOGITS, 2)
    assert kept.tolist() == [
        [GONE, 2.0, GONE, 1.5, GONE],
        [3.0, GONE, pytest.approx(2.9), GONE, GONE],
    ]
    assert torch.equal(keep_top_k(LOGITS, 0), LOGITS)
    assert torch.equal(keep_top_k(LOGITS, 9), LOGITS)


@pytest.mark.parametrize("p", [0.05, 0.3, 0.5, 0.8, 0.95, 1.0])
def test_top_p_keeps_the_fewest_that_reach_p(p):
    kept = keep_top_p(LOGITS, p) > GONE
    for row, kept_row in zip(LOGITS.softmax(-1).tolist(), kept.tolist(), strict=True):
        order = sorted(range(len(row)), key=lambda token: -row[token])
        wanted, total = set(), 0.0
        for token in order:
            if total < p:
                wanted.add(token)
            total += row[token]
        assert {token for token, is_kept in enumerate(kept_row) if is_kept} == wanted


def test_the_seed_decides_the_draws():
    def draws(seed):
        sampler = Sampler(Sampling(temperature=1.0, seed=seed))
        return [sampler(LOGITS).tolist() for _ in range(20)]

    assert draws(3) == draws(3)
    assert draws(3) != draws(4)


def test_draws_follow_the_tempered_probabilities():
    sampler = Sampler(Sampling(temperature=0.7, seed=0))
    counts = torch.zeros(5)
    for token in torch.cat([sampler(LOGITS[:1].expand(1000, -1)) for _ in range(20)]).tolist():
        counts[token] += 1
    torch.testing.assert_close(
        counts / counts.sum(), (LOGITS[0] / 0.7).softmax(-1), atol=0.01, rtol=0
    )


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
