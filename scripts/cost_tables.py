"""Write the tables of numbers in docs/costs.md, docs/architecture.md and docs/emulation.md.

Every number comes from ``krakenlm.config``, ``krakenlm.model.shard`` and ``krakenlm.emulation``. A
test compares the committed tables with what this script makes.

    python scripts/cost_tables.py
"""

from collections.abc import Callable
from pathlib import Path

import torch

from krakenlm.bench.latency import Setup
from krakenlm.config import (
    WIRINGS,
    ModelConfig,
    WiringName,
    allreduce_bytes_per_token,
    count_parameters,
    derive,
    kv_cache_bytes_per_token,
    model_config,
    relative_difference,
)
from krakenlm.emulation.cases import Case, Grid
from krakenlm.emulation.footprint import needs
from krakenlm.model.shard import split
from krakenlm.transport.links import Link
from markers import markdown, rewrite

DOCS = Path(__file__).resolve().parents[1] / "docs"
PAGES = (DOCS / "costs.md", DOCS / "architecture.md", DOCS / "emulation.md")

# The published configurations, with the baseline and N of each.
PUBLISHED = (
    ("kraken-125M-2way", "gpt2", 2),
    ("kraken-125M-4way", "gpt2", 4),
    ("kraken-125M-6way", "gpt2", 6),
    ("kraken-350M-2way", "gpt2-medium", 2),
    ("kraken-350M-4way", "gpt2-medium", 4),
    ("kraken-760M-4way", "758M", 4),
)
GRID = tuple((base, n) for base in ("355M", "1.3B", "6.7B", "175B") for n in (2, 4, 8))
NAMES: dict[WiringName, str] = {
    "standard": "standard tensor parallelism",
    "parallel": "parallel attention and feed-forward",
    "ladder": "Ladder Residual",
    "kraken": "Kraken",
    "shared": "shared",
    "kraken-shared": "kraken-shared",
    "lagged": "lagged",
    "lagged-layer": "lagged-layer",
}


def allreduces() -> str:
    """AllReduces of one forward pass as formulas in L."""
    rows = []
    for wiring, name in NAMES.items():
        traits = WIRINGS[wiring]
        total = (traits.allreduces_per_layer, 0)
        hidden = traits.hidden_allreduces
        exposed = (total[0] - hidden[0], total[1] - hidden[1])
        rows.append([name, *map(_in_layers, (total, hidden, exposed))])
    headings = ["architecture", "AllReduces", "can hide behind compute", "exposed"]
    return markdown(headings, rows, numbers=True)


def derived() -> str:
    """The published rule against the published widths."""
    rows = []
    for published, base, n in PUBLISHED:
        standard, kraken = model_config(base), derive(model_config(base), n)
        rows.append(
            [
                published,
                _millions(count_parameters(standard)),
                _millions(count_parameters(kraken)),
                f"{relative_difference(kraken, standard):+.2%}",
                f"{model_config(published).hidden_size}",
                f"{kraken.hidden_size}",
                f"{kraken.heads_per_sublayer} × {kraken.head_dim}",
            ]
        )
    headings = [
        "configuration",
        "standard: parameters",
        "Kraken: parameters",
        "difference",
        "published d",
        "derived d",
        "heads × head_dim",
    ]
    return markdown(headings, rows, numbers=True)


def attention() -> str:
    """Attention width under the published rule."""
    rows = []
    for base, n in GRID:
        standard, kraken = model_config(base), derive(model_config(base), n)
        rows.append(
            [
                f"{base}, N = {n}",
                f"{standard.attention_width:,}",
                f"{kraken.attention_width:,}",
                _ratio(kraken.attention_width, standard.attention_width),
                f"{(1.5 * n) ** 0.5:.2f}×",
            ]
        )
    return markdown(["base", "standard", "Kraken", "ratio", "√(1.5 N)"], rows, numbers=True)


def cache() -> str:
    """The KV cache of one token under the published rule."""
    rows = []
    for base, n in GRID:
        standard, kraken = model_config(base), derive(model_config(base), n)
        flat, grown = kv_cache_bytes_per_token(standard), kv_cache_bytes_per_token(kraken)
        rows.append(
            [
                f"{base}, N = {n}",
                _kib(flat),
                _kib(grown),
                _kib(flat / n),
                _kib(grown / n),
            ]
        )
    headings = [
        "base",
        "standard",
        "Kraken",
        "standard, per device",
        "Kraken, per device",
    ]
    return markdown(headings, rows, numbers=True)


def messages() -> str:
    """What one token adds to the AllReduces, under the published rule."""
    rows = []
    for base, n in GRID:
        standard, kraken = model_config(base), derive(model_config(base), n)
        parallel = model_config(base, wiring="parallel")
        volume = allreduce_bytes_per_token(kraken)
        rows.append(
            [
                f"{base}, N = {n}",
                f"{2 * standard.hidden_size:,}",
                f"{2 * kraken.hidden_size:,}",
                f"{kraken.hidden_size / standard.hidden_size:.2f}",
                f"{(1.5 / n) ** 0.5:.2f}",
                _ratio(volume, allreduce_bytes_per_token(standard)),
                _ratio(volume, allreduce_bytes_per_token(parallel)),
            ]
        )
    headings = [
        "base",
        "standard: one AllReduce",
        "Kraken: one AllReduce",
        "d / d0",
        "√(1.5 / N)",
        "all AllReduces, against standard",
        "against parallel",
    ]
    return markdown(headings, rows, numbers=True)


def alternatives_gpt2() -> str:
    """What each option of derive changes, from GPT-2 at N = 4."""
    return _alternatives("gpt2", 4, head_dim=64)


def alternatives_large() -> str:
    """What each option of derive changes, from 6.7B at N = 8."""
    return _alternatives("6.7B", 8, head_dim=128)


def _alternatives(base: str, n: int, head_dim: int) -> str:
    standard = model_config(base)
    choices: dict[str, ModelConfig] = {
        "standard": standard,
        "published": derive(standard, n),
        f"`--head-dim {head_dim}`": derive(standard, n, head_dim=head_dim),
        "`--kv-heads 1`": derive(standard, n, kv_heads=1),
        f"`--head-dim {head_dim} --kv-heads 1`": derive(standard, n, head_dim=head_dim, kv_heads=1),
        "`--rule keep-width`": derive(standard, n, rule="keep-width"),
        "`--rule keep-width --kv-heads 1`": derive(standard, n, rule="keep-width", kv_heads=1),
        "`--wiring kraken-shared`": derive(standard, n, wiring="kraken-shared"),
        "`--rule shared`": derive(standard, n, rule="shared"),
        "`--rule shared --message-parts 2`": derive(standard, n, rule="shared", message_parts=2),
    }
    rows = [
        [
            name,
            f"{config.hidden_size:,}",
            f"{config.heads_per_sublayer} × {config.head_dim}",
            f"{config.kv_heads_per_sublayer}",
            f"{config.ffn_dim:,}",
            f"{relative_difference(config, standard):+.2%}",
            _ratio(config.attention_width, standard.attention_width),
            _ratio(kv_cache_bytes_per_token(config), kv_cache_bytes_per_token(standard)),
            _ratio(allreduce_bytes_per_token(config), allreduce_bytes_per_token(standard)),
        ]
        for name, config in choices.items()
    ]
    headings = [
        f"{base}, N = {n}",
        "d",
        "heads × head_dim",
        "KV heads",
        "ffn_dim",
        "parameters",
        "attention width",
        "KV cache",
        "AllReduce volume",
    ]
    return markdown(headings, rows, numbers=True)


def per_rank() -> str:
    """Parameters that every rank holds, against an even share."""
    rows = []
    for base, n in (("gpt2", 2), ("gpt2", 4), ("1.3B", 4), ("6.7B", 8)):
        standard = model_config(base)
        kraken = derive(standard, n)
        for name, config in (("standard", standard), ("Kraken", kraken)):
            most = max(count_parameters(shard.local_config) for shard in split(config, n))
            everywhere = config.hidden_size * (config.vocab_size + config.max_position_embeddings)
            rows.append(
                [
                    f"{base} on {n} devices, {name}",
                    _millions(count_parameters(config)),
                    _millions(count_parameters(config) / n),
                    _millions(most),
                    _millions(everywhere),
                    _ratio(most, count_parameters(config) / n),
                ]
            )
    headings = [
        "model",
        "whole model",
        "an even share",
        "held by one rank",
        "of that, embeddings",
        "held / even share",
    ]
    return markdown(headings, rows, numbers=True)


def placement() -> str:
    """How N sub-layers fall on k devices."""
    rows = []
    for n in (2, 4, 6):
        kraken = derive(model_config("gpt2"), n)
        for devices in range(1, n + 1):
            counts = [shard.count for shard in split(kraken, devices)]
            rows.append(
                [
                    f"N = {n} on {devices}",
                    " + ".join(map(str, counts)),
                    f"{max(counts) / n:.0%}",
                    f"{1 / devices:.0%}",
                ]
            )
    headings = ["sub-layers on devices", "held", "share of the fullest", "an even share"]
    return markdown(headings, rows, numbers=True)


def _in_layers(amount: tuple[int, int]) -> str:
    """``(2, -1)`` as ``2L - 1``."""
    per_layer, once = amount
    if per_layer == 0:
        return str(once)
    text = "L" if per_layer == 1 else f"{per_layer}L"
    return text if once == 0 else f"{text} {'+' if once > 0 else '-'} {abs(once)}"


def _ratio(value: float, base: float) -> str:
    return f"{value / base:.2f}×"


def _kib(size: float) -> str:
    return f"{size / 1024:,.1f} KiB"


def _millions(count: float) -> str:
    return f"{count / 1e6:,.1f} M"


def one_ranks_memory() -> str:
    """What a device needs that stands for several, in the paper's largest cells."""
    kraken, standard = Case("", 0, 2048, "kraken"), slice(0, 1)
    rows = []
    for name, size, models in (
        ("65B standard and hardware-friendly Kraken", "65B", slice(0, 2)),
        ("175B standard", "175B", standard),
        ("175B standard and hardware-friendly Kraken", "175B", slice(0, 2)),
    ):
        cells = []
        for n in (8, 4):
            setup = Setup(
                devices=n,
                input_len=kraken.input_len,
                output_len=1,
                emulate_peers=True,
                link=Link(gbps=1.0),
                graph_prefill=True,
            )
            together = Grid().models(kraken._replace(size=size, devices=n))[models]
            cells.append(f"{needs(together, setup, torch.float16).nbytes / 2**30:.0f} GiB")
        rows.append([name, *cells])
    return markdown(["models at once", "on 8 devices", "on 4 devices"], rows, numbers=True)


TABLES: dict[str, Callable[[], str]] = {
    "allreduces": allreduces,
    "derived": derived,
    "attention": attention,
    "cache": cache,
    "messages": messages,
    "alternatives-gpt2": alternatives_gpt2,
    "alternatives-large": alternatives_large,
    "per-rank": per_rank,
    "placement": placement,
    "one-ranks-memory": one_ranks_memory,
}

if __name__ == "__main__":
    rewrite(PAGES, TABLES)
