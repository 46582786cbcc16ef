"""The engine's attention, against PyTorch's and against loops over rows."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from krakenlm.config import ModelConfig
from krakenlm.model.attention import SdpaCore
from krakenlm.model.block_attention import attend_in_blocks
from krakenlm.model.cache import KVCache
from krakenlm.model.cached_attention import DecodeCore, PrefillCore, attend_one, causal_bias

HEADS, KV_HEADS, WIDTH = 6, 2, 5
CONFIG = ModelConfig(
    num_sublayers=1, hidden_size=12, num_hidden_layers=2, heads_per_sublayer=HEADS,
    kv_heads_per_sublayer=KV_HEADS, head_dim=WIDTH, vocab_size=7,
)  # fmt: skip
# What ``Attention`` tells its core; the layer is the second, since the first one is index 0.
MODULE = SimpleNamespace(
    layer_index=1, scaling=0.3, dropout=0.0, training=False, num_key_value_groups=HEADS // KV_HEADS
)
# A block has 64 rows in float32 and 128 in every other type.
SHAPES = {
    "one token": (1, 1, 1, 0, 1, 4),
    "one token behind others": (3, 4, 1, 7, 1, 3),
    "one block and a row": (2, 6, 2, 0, 65, 5),
    "two blocks to the row": (1, 8, 2, 64, 128, 6),
    "a block and a row of the wide ones": (2, 12, 3, 5, 129, 7),
    "rows left over, more keys than rows": (2, 4, 4, 131, 70, 8),
}


def naive(q_BHTE: Tensor, k_BGPE: Tensor, v_BGPE: Tensor, scaling: float, last_BT: Tensor):
    """Each query attends to the keys up to its own position, row by row in float64."""
    batch, heads, tokens, width = q_BHTE.shape
    share = heads // k_BGPE.shape[1]
    o_BTHE = torch.empty(batch, tokens, heads, width, dtype=torch.float64)
    for b in range(batch):
        for t in range(tokens):
            end = int(last_BT[b, t]) + 1
            for h in range(heads):
                k_PE, v_PE = k_BGPE[b, h // share, :end], v_BGPE[b, h // share, :end]
                weights_P = torch.exp(k_PE.double() @ q_BHTE[b, h, t].double() * scaling)
                o_BTHE[b, t, h] = weights_P / weights_P.sum() @ v_PE.double()
    return o_BTHE


def drawn(*shape: int, dtype=torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def new_cache(batch: int, capacity: int, fill: float | None = None) -> KVCache:
    cache = KVCache(
        CONFIG, batch=batch, capacity=capacity, dtype=torch.float64, device=torch.device("cpu")
    )
    if fill is not None:
        cache.keys_LBGCE.fill_(fill)
        cache.values_LBGCE.fill_(fill)
    return cache


def sequence(batch: int, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values."""
    q = drawn(batch, HEADS, tokens, WIDTH, seed=3 * seed)
    k, v = (drawn(batch, KV_HEADS, tokens, WIDTH, seed=3 * seed + i) for i in (1, 2))
    return q, k, v


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 3e-2)],
    ids=str,
)
def test_blocks_of_rows_equal_a_softmax_a_row(shape, dtype, tolerance):
    batch, heads, groups, past, tokens, width = shape
    q = drawn(batch, heads, tokens, width, dtype=dtype, seed=1)
    k, v = (drawn(batch, groups, past + tokens, width, dtype=dtype, seed=i) for i in (2, 3))
    last_BT = past + torch.arange(tokens).expand(batch, tokens)
    found = attend_in_blocks(q, k, v, 0.5)
    assert found.dtype == dtype
    wanted = naive(q, k, v, 0.5, last_BT)
    torch.testing.assert_close(found.double(), wanted, atol=tolerance, rtol=0)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_blocks_of_rows_equal_pytorchs_attention_from_tensors_that_lie_otherwise(shape):
    batch, heads, groups, past, tokens, width = shape
    # Heads lie behind tokens as a product leaves them; keys are part of a longer cache.
    q = drawn(batch, tokens, heads, width).transpose(1, 2)
    k, v = (drawn(batch, groups, past + tokens + 9, width, seed=i)[:, :, :-9] for i in (1, 2))
    mask = torch.ones(tokens, past + tokens, dtype=torch.bool).tril(past)
    wanted = torch.nn.functional.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, scale=0.7, enable_gqa=True
    )
    found = attend_in_blocks(q, k, v, 0.7)
    torch.testing.assert_close(found, wanted.transpose(1, 2), atol=1e-12, rtol=0)


@pytest.mark.parametrize(("heads", "groups"), [(1, 1), (6, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("batch", [1, 4])
def test_one_query_equals_a_softmax_up_to_each_position(heads, groups, batch):
    q = drawn(batch, heads, 1, 5, seed=1)
    k, v = (drawn(batch, groups, 11, 5, seed=i) for i in (2, 3))
    positions_B = torch.tensor([0, 10, 3, 7])[:batch]
    found = attend_one(q, k, v, causal_bias(positions_B, 11, torch.float64), 0.5)
    wanted = naive(q, k, v, 0.5, positions_B[:, None])
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("pieces", [(70,), (1, 69), (64, 1, 5), (13, 57)], ids=str)
def test_a_prompt_in_pieces_equals_pytorchs_core_and_reads_only_what_was_written(pieces):
    q, k, v = sequence(batch=2, tokens=70)
    wanted = SdpaCore()(MODULE, q, k, v)
    cache = new_cache(2, 100, fill=float("nan"))
    found, start = [], 0
    for size in pieces:
        part = slice(start, start + size)
        core = PrefillCore(cache, start)
        found.append(core(MODULE, q[:, :, part], k[:, :, part], v[:, :, part]))
        start += size
    torch.testing.assert_close(torch.cat(found, 1), wanted, atol=1e-12, rtol=0)


@pytest.mark.parametrize("start", [0, 6])
def test_kept_queries_attend_from_their_own_positions(start):
    q, k, v = sequence(batch=3, tokens=20)
    whole = SdpaCore()(MODULE, q, k, v)
    cache = new_cache(3, 32, fill=float("nan"))
    cache.store(MODULE.layer_index, 0, k[:, :, :start], v[:, :, :start])
    kept = [19, start, 11]
    q_BH1E = torch.stack([q[b, :, position, None] for b, position in enumerate(kept)])
    core = PrefillCore(cache, start, torch.tensor(kept))
    found = core(MODULE, q_BH1E, k[:, :, start:], v[:, :, start:])
    wanted = torch.stack([whole[b, position, None] for b, position in enumerate(kept)])
    torch.testing.assert_close(found, wanted, atol=1e-12, rtol=0)


def decoded(cache: KVCache, lengths: list[int], end: int) -> Tensor:
    """One token behind prompts of these lengths, whose keys the cache gets first."""
    q, k, v = sequence(len(lengths), 1, seed=1)
    _, keys, values = sequence(len(lengths), max(lengths))
    for b, length in enumerate(lengths):
        cache.keys_LBGCE[1, b, :, :length] = keys[b, :, :length]
        cache.values_LBGCE[1, b, :, :length] = values[b, :, :length]
    return DecodeCore(cache, torch.tensor(lengths), end)(MODULE, q, k, v)


def test_a_token_attends_to_its_own_sequence_up_to_itself():
    lengths = [9, 1, 4]
    found = decoded(new_cache(3, 16), lengths, 12)
    q, k, v = sequence(3, 1, seed=1)
    _, keys, values = sequence(3, 9)
    for b, length in enumerate(lengths):
        core = SdpaCore(new_cache(1, 10), 0)
        before = keys[b, None, :, :length], values[b, None, :, :length]
        core(MODULE, q[:1].expand(-1, -1, length, -1), *before)
        last = SdpaCore(core._cache, length)
        wanted = last(MODULE, q[b, None], k[b, None], v[b, None])
        torch.testing.assert_close(found[b, None], wanted, atol=1e-12, rtol=0)


def test_what_an_earlier_batch_left_behind_changes_no_bit():
    clean = decoded(new_cache(2, 16), [9, 2], 16)
    assert torch.equal(decoded(new_cache(2, 16, fill=1e4), [9, 2], 16), clean)


def test_a_bucket_without_the_rest_of_the_cache_is_all_that_is_read():
    cache = new_cache(2, 16)
    cache.keys_LBGCE[..., 12:, :] = float("nan")
    cache.values_LBGCE[..., 12:, :] = float("nan")
    clean = decoded(new_cache(2, 16), [9, 2], 12)
    assert torch.equal(decoded(cache, [9, 2], 12), clean)


def test_a_new_cache_is_zero_since_masked_values_are_multiplied_by_nought(monkeypatch):
    # Whatever memory ``empty`` finds, a cache must not show it.
    monkeypatch.setattr(torch, "empty", lambda size, **kind: torch.full(size, torch.nan, **kind))
    cache = new_cache(2, 16)
    assert not cache.keys_LBGCE.any()
    assert not cache.values_LBGCE.any()
    assert decoded(cache, [9, 2], 16).isfinite().all()
    assert decoded(new_cache(2, 16, fill=float("nan")), [9, 2], 16).isnan().any()


def test_a_cache_says_how_large_it_is():
    cache = new_cache(3, 20)
    assert (cache.batch, cache.capacity) == (3, 20)
    assert cache.nbytes == 2 * 2 * 3 * KV_HEADS * 20 * WIDTH * 8
