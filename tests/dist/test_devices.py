"""One model on 1, 2, 3 and 4 gloo ranks: the same logits and the same tokens."""

from functools import partial
from pathlib import Path

import pytest
import torch

from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.parallel.engine import Engine
from krakenlm.parallel.launch import Rank, launch

pytestmark = pytest.mark.dist

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 61, "max_position_embeddings": 48}
MODELS = {
    "kraken 4": {"wiring": "kraken", "num_sublayers": 4, "heads_per_sublayer": 2},
    "kraken 6, every option": {
        "wiring": "kraken", "num_sublayers": 6, "heads_per_sublayer": 4, "kv_heads_per_sublayer": 1,
        "head_dim": 6, "ffn_dim": 20, "position": "rope", "norm": "rmsnorm", "activation": "swiglu",
        "bias": True, "tie_word_embeddings": False,
    },
    "kraken 5 with biases": {
        "wiring": "kraken", "num_sublayers": 5, "heads_per_sublayer": 2, "bias": True,
    },
    "standard": {
        "wiring": "standard", "num_sublayers": 1, "heads_per_sublayer": 8, "bias": True,
        "kv_heads_per_sublayer": 4, "activation": "swiglu",
    },
    "standard in 2 branches": {
        "wiring": "standard", "num_sublayers": 2, "heads_per_sublayer": 4, "bias": True,
        "kv_heads_per_sublayer": 2, "ffn_dim": 50,
    },
    "parallel": {
        "wiring": "parallel", "num_sublayers": 1, "heads_per_sublayer": 12, "bias": True,
        "position": "rope",
    },
    "ladder": {
        "wiring": "ladder", "num_sublayers": 1, "heads_per_sublayer": 6, "norm": "rmsnorm",
    },
}  # fmt: skip
PROMPT = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(3))
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[Path, KrakenForCausalLM]]:
    torch.manual_seed(0)
    made = {}
    for name, fields in MODELS.items():
        model = KrakenForCausalLM(KrakenConfig(**SMALL, **fields)).eval()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        directory = tmp_path_factory.mktemp("model")
        model.save_pretrained(directory)
        made[name] = (directory, model)
    return made


def answer(rank: Rank, directories: dict[str, Path]) -> None:
    for name, directory in directories.items():
        engine = Engine.load(directory, rank, torch.float32)
        logits = engine.logits(PROMPT)
        tokens = list(engine.generate(PROMPT, max_new_tokens=NEW_TOKENS))
        rank.emit((name, rank.index, logits.tolist(), tokens))


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_logits_and_greedy_tokens_do_not_depend_on_the_number_of_devices(models, devices):
    heard = {}

    def hear(message):
        name, rank, logits, tokens = message
        heard[name, rank] = (torch.tensor(logits), tokens)

    directories = {name: directory for name, (directory, _) in models.items()}
    launch(answer, [directories], devices=devices, on_message=hear, device_type="cpu")
    assert heard.keys() == {(name, rank) for name in MODELS for rank in range(devices)}
    for name, (_, model) in models.items():
        with torch.no_grad():
            wanted = model(PROMPT).logits
        tokens = model.generate(
            PROMPT,
            attention_mask=torch.ones_like(PROMPT),  # otherwise token 0 is taken for padding
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
            pad_token_id=0,
        )
        for rank in range(devices):
            logits, answered = heard[name, rank]
            torch.testing.assert_close(logits, wanted, atol=1e-5, rtol=0, msg=partial(_say, name))
            assert torch.tensor(answered).T.tolist() == tokens[:, PROMPT.shape[1] :].tolist(), name


def _say(name: str, message: str) -> str:
    return f"{name}: {message}"
