"""Models of published size, whole: on one rank and on several."""

import pytest
import torch

import naive
from krakenlm.config import count_parameters, model_config
from krakenlm.engine.engine import Engine
from krakenlm.ranks.launch import Rank, launch

pytestmark = [pytest.mark.slow, pytest.mark.dist]

PROMPT = torch.randint(50257, (1, 128), generator=torch.Generator().manual_seed(0))
NEW_TOKENS = 4


def answer(rank: Rank, directory) -> None:
    engine = Engine.load(directory, rank, torch.float32)
    logits = engine.logits(PROMPT)[0, -1]
    steps = engine.generate(PROMPT.tolist(), max_new_tokens=NEW_TOKENS)
    tokens = [token for (token,) in steps]
    if rank.index == 0:
        held = sum(p.numel() for p in engine.decoder.parameters())
        rank.emit((held, logits.tolist(), tokens))


@pytest.mark.parametrize(
    ("name", "devices"), [("gpt2", 2), ("kraken-125M-2way", 2), ("kraken-350M-4way", 3)]
)
def test_logits_and_tokens_on_several_ranks_equal_those_on_one(name, devices, tmp_path):
    # Not above: ranks import this file too, and Transformers takes each of them seconds.
    from krakenlm.integrations.hf import KrakenForCausalLM
    from krakenlm.integrations.hf_config import KrakenConfig

    torch.manual_seed(0)
    config = model_config(name)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config)).eval()
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config)
    with torch.no_grad():
        wanted = model(PROMPT).logits[0, -1]
    likeliest = naive.greedy(model, PROMPT[0].tolist(), NEW_TOKENS)
    model.save_pretrained(tmp_path)
    del model
    heard = []
    launch(answer, [tmp_path], devices=devices, on_message=heard.append, device_type="cpu")
    ((held, logits, tokens),) = heard
    torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-4, rtol=0)
    assert tokens == likeliest
    # Rank 0 holds no more than its share of the layers, beside the embeddings.
    embedding = (config.vocab_size + config.max_position_embeddings) * config.hidden_size
    share = (held - embedding) / (count_parameters(config) - embedding)
    assert share < 0.51
