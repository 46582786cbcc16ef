"""Models of published size, whole: on one rank and on several."""

import pytest
import torch

from krakenlm.config import count_parameters, model_config
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.parallel.engine import Engine
from krakenlm.parallel.launch import Rank, launch

pytestmark = [pytest.mark.slow, pytest.mark.dist]

PROMPT = torch.randint(50257, (1, 128), generator=torch.Generator().manual_seed(0))


def answer(rank: Rank, directory) -> None:
    engine = Engine.load(directory, rank, torch.float32)
    if rank.index == 0:
        held = sum(p.numel() for p in engine.decoder.parameters())
        rank.emit((held, engine.logits(PROMPT)[0, -1].tolist()))
    else:
        engine.logits(PROMPT)


@pytest.mark.parametrize(("name", "devices"), [("gpt2", 2), ("kraken-125M-2way", 2), ("kraken-350M-4way", 3)])
def test_logits_on_several_ranks_equal_those_on_one(name, devices, tmp_path):
    torch.manual_seed(0)
    config = model_config(name)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config)).eval()
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config)
    with torch.no_grad():
        wanted = model(PROMPT).logits[0, -1]
    model.save_pretrained(tmp_path)
    del model
    heard = []
    launch(answer, [tmp_path], devices=devices, on_message=heard.append, device_type="cpu")
    ((held, logits),) = heard
    torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-4, rtol=0)
    # Rank 0 holds no more than its share of the layers, beside the embeddings.
    embedding = (config.vocab_size + config.max_position_embeddings) * config.hidden_size
    share = (held - embedding) / (count_parameters(config) - embedding)
    assert share < 0.51
