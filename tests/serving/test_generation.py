"""vLLM answers as Hugging Face does, on any number of ranks that divides the model."""

import functools
from pathlib import Path
from typing import Any

import offline
import pytest
import torch

import naive
import tiny
from generated_code import calls, overlapped
from krakenlm.config import ModelConfig
from krakenlm.eval.model import load_causal_lm
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig

VOCABULARY = 300
NEW_TOKENS = 8
SHAPE = {
    "num_sublayers": 2, "hidden_size": 64, "num_hidden_layers": 2, "heads_per_sublayer": 2,
    "vocab_size": VOCABULARY, "max_position_embeddings": 256,
}  # fmt: skip
CONFIGS = {
    "kraken": ModelConfig(**SHAPE),
    # Heads of odd width, as the published shapes have.
    "kraken-4": ModelConfig(**{**SHAPE, "num_sublayers": 4}, head_dim=31),
    # No kernel is made for heads of 20; one key and value head in each sub-layer; S is a mean.
    "kraken-mqa": ModelConfig(
        **{**SHAPE, "heads_per_sublayer": 4}, kv_heads_per_sublayer=1, head_dim=20, bias=True,
        sum_scale=0.5, position="rope", norm="rmsnorm", activation="swiglu",
        tie_word_embeddings=False,
    ),
    "standard": ModelConfig(**SHAPE, wiring="standard", bias=True),
    "parallel": ModelConfig(
        **{**SHAPE, "heads_per_sublayer": 4}, wiring="parallel", kv_heads_per_sublayer=2,
        position="rope",
    ),
    "ladder": ModelConfig(**SHAPE, wiring="ladder", norm="rmsnorm", activation="swiglu"),
    "shared": ModelConfig(**SHAPE, wiring="shared", bias=True),
    "shared-halves": ModelConfig(
        **{**SHAPE, "num_hidden_layers": 3}, wiring="shared", message_parts=2
    ),
    "kraken-shared": ModelConfig(**SHAPE, wiring="kraken-shared", bias=True),
    "lagged": ModelConfig(**SHAPE, wiring="lagged", bias=True),
    "lagged-layer": ModelConfig(
        **{**SHAPE, "heads_per_sublayer": 4}, wiring="lagged-layer", kv_heads_per_sublayer=2,
        position="rope",
    ),
    "qwen3": ModelConfig(**SHAPE | tiny.FAMILIES["qwen3"], position="rope", qkv_bias=True),
    "neox": ModelConfig(**SHAPE | tiny.FAMILIES["neox"], position="rope"),
    "llama-late": ModelConfig(
        **{**SHAPE, "num_hidden_layers": 4, **tiny.FAMILIES["llama"], "wiring": "shared"},
        position="rope", late_layers="1-2",
    ),
}  # fmt: skip
# Another N than the checkpoint's own.
CHOSEN = {"shared as 1": ("shared", 1), "shared as 4": ("shared", 4)}


def prompts(count: int = 64) -> list[list[int]]:
    """Random tokens, 1 to 200 of them."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.linspace(1, 200, count).int().tolist()
    return [torch.randint(0, VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def save(folder: Path, config: ModelConfig) -> None:
    torch.manual_seed(0)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)


class Expected:
    """A checkpoint, and what the naive loop says after each prompt."""

    def __init__(self, folder: Path, sublayers: int | None) -> None:
        model = load_causal_lm(folder, sublayers=sublayers)
        self.folder = folder
        self.sublayers = sublayers
        self.tokens: list[list[int]] = []
        self.logprobs: list[list[float]] = []
        for prompt in prompts():
            tokens_BN, logits_BNV = naive.continued(model, torch.tensor([prompt]), NEW_TOKENS)
            self.tokens.append(tokens_BN[0].tolist())
            chances = logits_BNV.log_softmax(-1).gather(2, tokens_BN[..., None])
            self.logprobs.append(chances[0, :, 0].tolist())


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    made: dict[str, Expected] = {}

    def of(name: str) -> Expected:
        if name not in made:
            stored, sublayers = CHOSEN.get(name, (name, None))
            folder = tmp_path_factory.mktemp(stored)
            save(folder, CONFIGS[stored])
            made[name] = Expected(folder, sublayers)
        return made[name]

    return of


def assert_same(found, wanted: Expected) -> None:
    assert found["tokens"] == wanted.tokens
    torch.testing.assert_close(
        torch.tensor(found["logprobs"]), torch.tensor(wanted.logprobs), atol=1e-4, rtol=0
    )


@pytest.fixture(scope="module")
def answered(expected, tmp_path_factory):
    """What vLLM answers to all prompts, asked once for each way to run."""

    @functools.cache
    def by(name: str, ranks: int, way: str) -> dict[str, Any]:
        folder = tmp_path_factory.mktemp("asked")
        options: dict[str, Any] = {"overlap": way}
        if way not in ("async", "sync"):
            options = {"overlap": "async", "transport": way}
        asked = expected(name)
        if asked.sublayers is not None:
            options["sublayers"] = asked.sublayers
        return offline.generate(
            asked.folder, prompts(), folder, new_tokens=NEW_TOKENS, ranks=ranks, options=options
        )

    return by


# Each number of ranks, each wiring; async is with shared memory, others are said.
WAYS = [
    ("kraken", 1, "async"),
    ("kraken", 2, "async"),
    ("kraken", 2, "sync"),
    ("kraken", 2, "sockets"),
    ("kraken", 2, "process-group"),
    ("kraken-4", 2, "async"),
    ("kraken-4", 4, "async"),
    ("kraken-mqa", 2, "async"),
    ("standard", 2, "async"),
    ("standard", 2, "sync"),
    ("parallel", 2, "async"),
    ("ladder", 2, "async"),
    ("ladder", 2, "sync"),
    ("shared", 1, "async"),
    ("shared", 2, "async"),
    ("shared as 1", 2, "sync"),  # shared out as the standard model that it is
    ("shared as 4", 2, "async"),
    ("shared-halves", 2, "async"),
    ("kraken-shared", 2, "async"),
    ("lagged", 2, "async"),
    ("lagged-layer", 2, "async"),
    ("qwen3", 1, "async"),
    ("qwen3", 2, "async"),
    ("neox", 2, "async"),
    ("llama-late", 1, "async"),
    ("llama-late", 2, "async"),
]


@pytest.mark.parametrize(("name", "ranks", "way"), WAYS)
def test_greedy_answers_are_those_of_transformers(name, ranks, way, expected, answered):
    assert_same(answered(name, ranks, way), expected(name))


@pytest.mark.parametrize(("name", "ranks", "way"), WAYS)
def test_one_sequence_at_a_time_gives_the_same(name, ranks, way, expected, answered):
    assert answered(name, ranks, way)["tokens_alone"] == expected(name).tokens


def test_each_rank_reads_its_own_part_only(expected, answered):
    (file,) = expected("kraken-4").folder.glob("*.safetensors")
    read = answered("kraken-4", 4, "async")["bytes_read"]
    config = CONFIGS["kraken-4"]
    # Positions and the final norm are on every rank.
    shared = 4 * config.hidden_size * (config.max_position_embeddings + 1)
    assert len(read) == 4
    assert sum(read) - 3 * shared <= file.stat().st_size
    assert max(read) < 0.4 * file.stat().st_size


def test_compiled_code_keeps_sums_in_flight_behind_attention(expected, tmp_path):
    wanted = expected("kraken")
    cache = tmp_path / "cache"
    found = offline.generate(
        wanted.folder,
        prompts(),
        tmp_path,
        new_tokens=NEW_TOKENS,
        ranks=2,
        options={"overlap": "async"},
        eager=False,
        environment={
            "VLLM_CACHE_ROOT": str(cache),
            "TORCHINDUCTOR_CACHE_DIR": str(cache / "inductor"),
        },
    )
    assert_same(found, wanted)
    attention = r"vllm\.unified_attention_with_output"
    orders = [calls(path.read_text(), attention) for path in cache.rglob("*.py")]
    compiled = [order for order in orders if order]
    assert compiled
    for order in compiled:
        assert order == overlapped(CONFIGS["kraken"].num_hidden_layers)


@pytest.mark.parametrize(
    ("name", "ranks", "said"),
    [("kraken", 4, "2 sub-layers"), ("parallel", 3, "")],
)
def test_ranks_that_do_not_divide_the_model_are_refused(name, ranks, said, expected, tmp_path):
    with pytest.raises(AssertionError) as failed:
        offline.generate(expected(name).folder, prompts(1), tmp_path, new_tokens=1, ranks=ranks)
    assert said in str(failed.value)
