"""One model on 1, 2, 3 and 4 gloo ranks: the same logits and the same tokens."""

import itertools
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import naive
import tiny
from krakenlm.config import with_sublayers
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.sampling import Sampling
from krakenlm.model.checkpoint import read_config
from krakenlm.ranks.launch import Rank, launch
from reference import in_branches, reference_logits

pytestmark = pytest.mark.dist

SMALL = {"hidden_size": 24, "num_hidden_layers": 3, "vocab_size": 61, "max_position_embeddings": 48}
MODELS = {
    "kraken 4": {"wiring": "kraken", "num_sublayers": 4, "heads_per_sublayer": 2},
    "kraken 6, every option": {
        "wiring": "kraken", "num_sublayers": 6, "heads_per_sublayer": 4, "kv_heads_per_sublayer": 1,
        "head_dim": 6, "ffn_dim": 20, "position": "rope", "norm": "rmsnorm", "activation": "swiglu",
        "bias": True, "tie_word_embeddings": False,
    },
    "kraken 5 with biases and means": {
        "wiring": "kraken", "num_sublayers": 5, "heads_per_sublayer": 2, "bias": True,
        "sum_scale": 0.2,
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
    "shared 4": {
        "wiring": "shared", "num_sublayers": 4, "heads_per_sublayer": 2, "bias": True,
        "ffn_dim": 20,
    },
    "shared 4, sums of a third": {
        "wiring": "shared", "num_sublayers": 4, "heads_per_sublayer": 2, "bias": True,
        "position": "rope", "message_parts": 3,
    },
    "kraken-shared 4": {
        "wiring": "kraken-shared", "num_sublayers": 4, "heads_per_sublayer": 2, "bias": True,
    },
    "kraken-shared 5, sums of a half": {
        "wiring": "kraken-shared", "num_sublayers": 5, "heads_per_sublayer": 4, "bias": True,
        "kv_heads_per_sublayer": 2, "head_dim": 6, "norm": "rmsnorm", "activation": "swiglu",
        "tie_word_embeddings": False, "message_parts": 2,
    },
    "kraken-shared 1, sums of a half": {
        "wiring": "kraken-shared", "num_sublayers": 1, "heads_per_sublayer": 8, "bias": True,
        "message_parts": 2,
    },
    "lagged": {
        "wiring": "lagged", "num_sublayers": 1, "heads_per_sublayer": 8, "bias": True,
        "kv_heads_per_sublayer": 4,
    },
    "lagged-layer": {
        "wiring": "lagged-layer", "num_sublayers": 1, "heads_per_sublayer": 6, "position": "rope",
    },
    "Qwen's": {
        **tiny.FAMILIES["qwen3"], "num_sublayers": 1, "heads_per_sublayer": 8, "qkv_bias": True,
        "kv_heads_per_sublayer": 4, "position": "rope", "tie_word_embeddings": False,
    },
    "GPT-NeoX's": {
        **tiny.FAMILIES["neox"], "num_sublayers": 1, "heads_per_sublayer": 4, "position": "rope",
    },
    "Llama's, shared 4 in layer 1": {
        **tiny.FAMILIES["llama"], "wiring": "shared", "num_sublayers": 4, "heads_per_sublayer": 2,
        "kv_heads_per_sublayer": 1, "position": "rope", "late_layers": "1",
    },
    "GPT-NeoX's, lagged in layers 1 and 2": {
        **tiny.FAMILIES["neox"], "wiring": "lagged-layer", "num_sublayers": 2,
        "heads_per_sublayer": 2, "position": "rope", "late_layers": "1-2",
    },
}  # fmt: skip
# Too few sub-layers for 4 ranks, so that some share one.
SHARED = {
    "kraken 2": {"wiring": "kraken", "num_sublayers": 2, "heads_per_sublayer": 4},
    "kraken 2, every option": {
        "wiring": "kraken", "num_sublayers": 2, "heads_per_sublayer": 6, "kv_heads_per_sublayer": 3,
        "head_dim": 4, "ffn_dim": 21, "position": "rope", "activation": "swiglu", "bias": True,
        "tie_word_embeddings": False,
    },
    "kraken-shared 2, sums of a half": {
        "wiring": "kraken-shared", "num_sublayers": 2, "heads_per_sublayer": 4, "bias": True,
        "ffn_dim": 21, "message_parts": 2,
    },
    "shared 2": {
        "wiring": "shared", "num_sublayers": 2, "heads_per_sublayer": 4, "bias": True,
        "kv_heads_per_sublayer": 2, "ffn_dim": 21,
    },
    "Qwen's, shared 2 in layers 0 and 2": {
        **tiny.FAMILIES["qwen3"], "wiring": "shared", "num_sublayers": 2, "heads_per_sublayer": 4,
        "kv_heads_per_sublayer": 2, "position": "rope", "qkv_bias": True, "late_layers": "0,2",
    },
}  # fmt: skip
# One checkpoint, which several numbers of sub-layers are chosen for.
ANY_N = "shared, any N"
ANY_N_FIELDS = {
    "wiring": "shared", "num_sublayers": 1, "heads_per_sublayer": 12, "kv_heads_per_sublayer": 12,
    "head_dim": 2, "ffn_dim": 60, "bias": True, "activation": "swiglu", "position": "rope",
}  # fmt: skip
PROMPT = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(3))
PROMPTS = [PROMPT[0].tolist(), PROMPT[1, :4].tolist(), [7]]
NEW_TOKENS = 10
SAMPLINGS = [
    Sampling(temperature=0.9, top_k=20, top_p=0.9, seed=5),
    Sampling(temperature=0.9, top_p=0.9, seed=6),
    Sampling(temperature=0.9, top_k=20, seed=7),
    Sampling(temperature=0.9, seed=8),
]
# Each model is sampled in one of these ways.
SAMPLING_OF = dict(zip([*MODELS, *SHARED], itertools.cycle(SAMPLINGS)))


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[Path, Any]]:
    """A folder and Transformers' model of each."""
    # Not above: ranks import this file too, and Transformers takes each of them seconds.
    from krakenlm.integrations.hf import KrakenForCausalLM
    from krakenlm.integrations.hf_config import KrakenConfig

    torch.manual_seed(0)
    made = {}
    for name, fields in (MODELS | SHARED | {ANY_N: ANY_N_FIELDS}).items():
        model = KrakenForCausalLM(KrakenConfig(**SMALL, **fields)).eval()
        if name == ANY_N:
            model.double()
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
        directory = tmp_path_factory.mktemp("model")
        model.save_pretrained(directory)
        made[name] = (directory, model)
    return made


@pytest.fixture(scope="module")
def sampled(models) -> dict[str, list[list[int]]]:
    """What one rank draws."""
    alone = Rank(0, 1, torch.device("cpu"), lambda message: None)
    return {
        name: tokens(Engine.load(directory, alone, torch.float32), SAMPLING_OF[name])
        for name, (directory, _) in models.items()
        if name in SAMPLING_OF
    }


def variants(devices: int) -> dict[str, dict[str, EngineOptions]]:
    """Ways to run each model on so many ranks."""
    plain = {"as it comes": EngineOptions()}
    if devices <= 2:
        plain["in chunks"] = EngineOptions(prefill_chunks=2)
    runs = {name: dict(plain) for name in MODELS}
    if devices == 2:
        runs["kraken 4"]["uneven"] = EngineOptions(placement=(3, 1))
        runs["kraken 4"]["measured"] = EngineOptions(placement="auto")
        runs["kraken-shared 4"]["uneven"] = EngineOptions(placement=(1, 3))
        parted = runs["kraken-shared 5, sums of a half"]
        parted["uneven"] = EngineOptions(placement=(4, 1))
        parted["in chunks, by sockets"] = EngineOptions(prefill_chunks=3, transport="sockets")
        parted["by the process group"] = EngineOptions(transport="process-group")
        parted["measured"] = EngineOptions(placement="auto")
        runs["standard"]["uneven"] = EngineOptions(placement=(1, 3))
        runs["Qwen's"]["uneven"] = EngineOptions(placement=(3, 1))
        runs["GPT-NeoX's"]["uneven, in chunks"] = EngineOptions(placement=(1, 3), prefill_chunks=3)
        runs["Llama's, shared 4 in layer 1"]["uneven"] = EngineOptions(placement=(3, 1))
        runs["lagged"]["uneven"] = EngineOptions(placement=(3, 1))
        runs["lagged-layer"]["uneven"] = EngineOptions(placement=(1, 5))
        runs["ladder"]["measured"] = EngineOptions(placement="auto")
    if devices <= 2:
        runs |= {name: dict(plain) for name in SHARED}
    if devices in (2, 4):
        for name in SHARED:
            runs.setdefault(name, {})["sub-layers shared"] = EngineOptions(tensor_parallel=2)
    if devices == 4:
        in_chunks = EngineOptions(tensor_parallel=2, prefill_chunks=3, transport="sockets")
        runs["kraken 2, every option"]["shared, in chunks, by sockets"] = in_chunks
    return runs


def choices(devices: int) -> dict[str, EngineOptions]:
    """Numbers of sub-layers, and ways to share them out to so many ranks."""
    chosen = {str(n): EngineOptions(sublayers=n) for n in (1, 2, 3, 4, 6) if n == 1 or n >= devices}
    chosen["the checkpoint's own"] = EngineOptions()
    if devices == 2:
        chosen["4 unevenly"] = EngineOptions(sublayers=4, placement=(3, 1))
        chosen["6 measured"] = EngineOptions(sublayers=6, placement="auto")
        chosen["1 unevenly"] = EngineOptions(sublayers=1, placement=(5, 7))
        chosen["1 measured"] = EngineOptions(sublayers=1, placement="auto")
        chosen["1 on both"] = EngineOptions(sublayers=1, tensor_parallel=2)
        chosen["3 on both"] = EngineOptions(sublayers=3, tensor_parallel=2)
    if devices == 4:
        chosen["2 on two each"] = EngineOptions(sublayers=2, tensor_parallel=2)
        chosen["3 unevenly on two each"] = EngineOptions(
            sublayers=3, tensor_parallel=2, placement=(2, 1)
        )
    return chosen


def tokens(engine: Engine, sampling: Sampling) -> list[list[int]]:
    steps = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, sampling=sampling)
    return [list(row) for row in zip(*steps, strict=True)]


def answer(rank: Rank, directories: dict[str, Path]) -> None:
    for name, options_by_variant in variants(rank.size).items():
        for variant, options in options_by_variant.items():
            engine = Engine.load(directories[name], rank, torch.float32, options)
            rank.emit(
                (
                    (name, variant, rank.index),
                    engine.logits(PROMPT).tolist(),
                    tokens(engine, Sampling()),
                    tokens(engine, SAMPLING_OF[name]),
                )
            )
    logits_of_choices(rank, directories[ANY_N])


def logits_of_choices(rank: Rank, directory: Path) -> None:
    for choice, options in choices(rank.size).items():
        engine = Engine.load(directory, rank, torch.float64, options)
        rank.emit(((ANY_N, choice, rank.index), engine.logits(PROMPT).tolist()))


@pytest.mark.parametrize("devices", [1, 2, 3, 4])
def test_logits_and_tokens_do_not_depend_on_the_devices_or_how_they_are_used(
    models, sampled, devices
):
    heard = {}
    directories = {name: directory for name, (directory, _) in models.items()}
    launch(
        answer,
        [directories],
        devices=devices,
        on_message=lambda message: heard.update({message[0]: message[1:]}),
        device_type="cpu",
    )
    _check_choices(models[ANY_N], devices, heard)
    assert heard.keys() == {
        (name, variant, rank)
        for name, options_by_variant in variants(devices).items()
        for variant in options_by_variant
        for rank in range(devices)
    }
    for name in variants(devices):
        _, model = models[name]
        with torch.no_grad():
            wanted = model(PROMPT).logits
        likeliest = [naive.greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS]
        for (named, *run), (logits, answered, drawn) in heard.items():
            if named != name:
                continue
            say = partial(_say, f"{name} {run}")
            torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-5, rtol=0, msg=say)
            assert answered == likeliest, (name, run)
            assert drawn == sampled[name], (name, run)


def _check_choices(made: tuple[Path, Any], devices: int, heard: dict[Any, Any]) -> None:
    """Each N is the function of that N, whoever holds which of its sub-layers; 1 is standard."""
    directory, model = made
    config, stored = read_config(directory), model.state_dict()
    for choice, options in choices(devices).items():
        n = options.sublayers or config.num_sublayers
        weights = in_branches(config, stored, n)
        wanted = reference_logits(with_sublayers(config, n), weights, PROMPT)
        if n == 1:
            standard = reference_logits(config.replace(wiring="standard"), stored, PROMPT)
            torch.testing.assert_close(wanted, standard, atol=1e-12, rtol=0)
        for rank in range(devices):
            (found,) = heard.pop((ANY_N, choice, rank))
            say = partial(_say, f"{ANY_N}: {choice}, rank {rank}")
            logits = torch.tensor(found, dtype=torch.float64)
            torch.testing.assert_close(logits, wanted, atol=1e-9, rtol=0, msg=say)


def _say(run: str, message: str) -> str:
    return f"{run}: {message}"
