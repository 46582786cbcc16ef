"""The engine on one device, against Hugging Face's path through the same modules."""

import pytest
import torch

from krakenlm.config import WIRINGS, ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.parallel.engine import Engine, check_request
from krakenlm.parallel.launch import Rank
from krakenlm.parallel.sampling import Sampling

ALONE = Rank(0, 1, torch.device("cpu"), lambda message: None)


def saved(directory, **changes) -> KrakenForCausalLM:
    torch.manual_seed(1)
    fields = {
        "num_sublayers": 2, "hidden_size": 24, "num_hidden_layers": 3, "heads_per_sublayer": 4,
        "kv_heads_per_sublayer": 2, "vocab_size": 61, "max_position_embeddings": 48, "bias": True,
    } | changes  # fmt: skip
    model = KrakenForCausalLM(KrakenConfig(**fields)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    return model


def greedy(model: KrakenForCausalLM, ids: torch.Tensor, count: int) -> torch.Tensor:
    everything = torch.ones_like(ids)  # otherwise Transformers takes token 0 for padding
    tokens = model.generate(
        ids, attention_mask=everything, max_new_tokens=count, do_sample=False, pad_token_id=0
    )
    return tokens[:, ids.shape[1] :]


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_greedy_tokens_and_logits_equal_hugging_face(wiring, position, tmp_path):
    model = saved(tmp_path, wiring=wiring, position=position)
    engine = Engine.load(tmp_path, ALONE, torch.float32)
    ids = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))
    wanted = greedy(model, ids, 20)
    steps = list(engine.generate(ids, max_new_tokens=20))
    assert torch.tensor(steps).T.tolist() == wanted.tolist()
    torch.testing.assert_close(engine.logits(ids), model(ids).logits, atol=1e-5, rtol=0)


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("chunks", [(1,) * 12, (5, 7), (1, 10, 1), (11, 1)])
def test_cache_filled_in_any_chunks_gives_the_logits_without(wiring, chunks, tmp_path):
    saved(tmp_path, wiring=wiring, position="rope")
    engine = Engine.load(tmp_path, ALONE, torch.float64)
    ids = torch.randint(61, (3, 12), generator=torch.Generator().manual_seed(0))
    cache = engine.new_cache(batch=3, capacity=12)
    cache.keys_LBGCE.fill_(float("nan"))  # what was not written must not be read
    cache.values_LBGCE.fill_(float("nan"))
    pieces = [engine.logits(piece, cache) for piece in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), engine.logits(ids), atol=1e-9, rtol=0)


def test_sequences_stop_at_their_end_token(tmp_path):
    saved(tmp_path)
    engine = Engine.load(tmp_path, ALONE, torch.float32)
    ids = torch.randint(61, (2, 5), generator=torch.Generator().manual_seed(2))
    free = list(engine.generate(ids, max_new_tokens=12))
    first, second = zip(*free, strict=True)
    end = first[3]
    stopped = list(engine.generate(ids, max_new_tokens=12, eos_token_ids={end}))
    cut = [list(row[: row.index(end) + 1]) if end in row else list(row) for row in (first, second)]
    longest = max(map(len, cut))
    assert len(stopped) == longest
    for row, wanted in zip(zip(*stopped, strict=True), cut, strict=True):
        assert list(row) == wanted + [end] * (longest - len(wanted))


def test_seed_repeats_an_answer(tmp_path):
    saved(tmp_path)
    engine = Engine.load(tmp_path, ALONE, torch.float32)
    ids = torch.tensor([[1, 2, 3]])

    def answer(seed):
        sampling = Sampling(temperature=1.5, top_k=20, top_p=0.9, seed=seed)
        return list(engine.generate(ids, max_new_tokens=15, sampling=sampling))

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


@pytest.mark.parametrize(
    ("prompt", "new", "message"),
    [
        ([], 1, "prompt is empty"),
        ([1] * 40, 10, "40 tokens and 10 new ones.*holds 48"),
        ([1, 61], 1, "token 61 is outside.*61"),
        ([-1], 1, "token -1 is outside"),
        ([1], 0, "--max-new-tokens 0"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused(prompt, new, message):
    config = ModelConfig(hidden_size=24, vocab_size=61, max_position_embeddings=48)
    with pytest.raises(KrakenError, match=message):
        check_request(config, [prompt], new)


def test_the_last_token_needs_no_position(tmp_path):
    saved(tmp_path)
    engine = Engine.load(tmp_path, ALONE, torch.float32)
    assert len(list(engine.generate(torch.ones(1, 40, dtype=torch.long), max_new_tokens=9))) == 9


def test_weights_that_are_not_numbers_are_noticed(tmp_path):
    saved(tmp_path)
    engine = Engine.load(tmp_path, ALONE, torch.float32)
    engine.decoder.norm.weight.data.fill_(float("nan"))
    with pytest.raises(KrakenError, match="logits are not finite"):
        next(engine.generate(torch.ones(1, 3, dtype=torch.long), max_new_tokens=2))
