"""How near a prefill comes to the rate of PyTorch's own linear layer, on one core.

    python scripts/prefill_efficiency.py --output-json docs/results/latency/efficiency.json

One rank's half of GPT-2 124M, communication left out, against ``F.linear`` in bfloat16 over
matrices of the same shapes, in turn. The prefill's rate counts the operations of its linear maps
and of causal attention; norms, GELU, sums and copies count as time alone.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn import functional as F

from krakenlm.config import ModelConfig, model_config
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.environment import Environment
from krakenlm.files import write_json
from krakenlm.model.decoder import Decoder
from krakenlm.model.packed import pack
from krakenlm.model.shard import split
from krakenlm.ranks.cores import keep_freed_memory
from krakenlm.ranks.launch import Rank
from krakenlm.spread import Quantiles
from krakenlm.transport.connect import without_communication

TOKENS = 512
ROUNDS = 25


def half_of(config: ModelConfig) -> Engine:
    """One of two ranks' part, with random weights and nobody to talk to."""
    shard = split(config, 2)[0]
    decoder = Decoder(shard.local_config)
    decoder.initialise()
    decoder = decoder.to(torch.bfloat16).requires_grad_(False)
    rows = shard.head_rows
    head_VD = decoder.embed_tokens.weight[rows.start : rows.stop]
    rank = Rank(0, 2, torch.device("cpu"), print)
    engine = Engine(decoder, head_VD, shard, rank, without_communication(shard), EngineOptions())
    pack(engine.decoder)
    keep_freed_memory()
    return engine


def shapes(config: ModelConfig) -> list[tuple[int, int, int]]:
    """(rows, inputs, outputs) of every linear map in one rank's prefill."""
    d, inner, ffn = config.hidden_size, config.attention_width, config.ffn_dim
    found = []
    for layer in range(config.num_hidden_layers):
        rows = TOKENS if layer < config.num_hidden_layers - 1 else 1
        found += [(TOKENS, d, 3 * inner), (rows, inner, d), (rows, d, ffn), (rows, ffn, d)]
    return found


def attention_operations(config: ModelConfig) -> int:
    """Multiplications and additions of scores and values, the masked half left out."""
    pairs = TOKENS * (TOKENS + 1) // 2
    whole = (config.num_hidden_layers - 1) * pairs + TOKENS
    return 4 * config.attention_width * whole


def main() -> None:
    """Measure in turn, print and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output-json", type=Path)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[:1])
    torch.set_num_threads(1)
    engine = half_of(model_config("124M"))
    local = engine.decoder.config
    maps = [
        (torch.randn(rows, inputs).bfloat16(), torch.randn(outputs, inputs).bfloat16())
        for rows, inputs, outputs in shapes(local)
    ]
    linear_operations = sum(2 * rows * i * o for rows, i, o in shapes(local))
    session = engine.session([list(range(TOKENS))], 1)
    prefill: list[float] = []
    linear: list[float] = []
    with torch.no_grad():
        for _ in range(ROUNDS + 3):
            prefill.append(_seconds(session.prefill))
            linear.append(_seconds(lambda: [F.linear(x, w) for x, w in maps]))
    prefill, linear = prefill[3:], linear[3:]
    operations = linear_operations + attention_operations(local)
    shares = [
        (operations / whole) / (linear_operations / alone)
        for whole, alone in zip(prefill, linear, strict=True)
    ]
    report = {
        "schema_version": 1,
        "tokens": TOKENS,
        "rounds": ROUNDS,
        "prefill_ms": 1000 * statistics.median(prefill),
        "prefill_gflops": operations / statistics.median(prefill) / 1e9,
        "linear_ms": 1000 * statistics.median(linear),
        "linear_gflops": linear_operations / statistics.median(linear) / 1e9,
        "share": vars(Quantiles.of(shares)),
        "environment": vars(Environment.here(cores=1)),
    }
    print(json.dumps(report, indent=2))
    if arguments.output_json is not None:
        write_json(arguments.output_json, report)


def _seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
