"""``krakenlm derive``: the model of N sub-layers that matches a standard one, and what it costs."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from krakenlm.config import (
    ModelConfig,
    Rule,
    allreduce_bytes_per_token,
    allreduces,
    count_parameters,
    hidden_allreduces,
    kv_cache_bytes_per_token,
    model_config,
    relative_difference,
    size_names,
)
from krakenlm.config import derive as derive_config
from krakenlm.errors import KrakenError

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}

_Base = Annotated[
    str,
    typer.Argument(
        metavar="BASE", help="A size (gpt2, 355M, 6.7B, ...) or the folder of a standard model."
    ),
]
_Sublayers = Annotated[int, typer.Option("--sublayers", "-n", help="N, the sub-layers of a layer.")]
_Rule = Annotated[
    Rule,
    typer.Option(
        help="published: narrow the stream until the parameters match. keep-width: keep d and "
        "divide heads and feed-forward, so attention work and KV cache stay the standard's. "
        "shared: keep the one stream as well, so all weights have the standard's shapes."
    ),
]
_Wiring = Annotated[
    Literal["kraken", "kraken-shared", "shared"] | None,
    typer.Option(
        help="kraken, or kraken-shared: Kraken's sub-layers over one stream, without a "
        "conjunction.",
        show_default="the rule's: kraken or shared",
    ),
]
_HeadDim = Annotated[
    int,
    typer.Option(help="Hardware-friendly: heads of this width, widths in multiples of 64."),
]
_KVHeads = Annotated[
    int, typer.Option(help="Key and value heads of one sub-layer (grouped-query attention).")
]
_MessageParts = Annotated[
    int,
    typer.Option(
        help="Of shared and kraken-shared: groups of channels, of which each layer sums one."
    ),
]
_LateLayers = Annotated[
    str,
    typer.Option(
        metavar="LAYERS",
        help="Of shared: only these layers, such as 16-29, hide their sums; the others await "
        "theirs. All by default.",
    ),
]
_DType = Annotated[
    Literal["float32", "float16", "bfloat16"],
    typer.Option(help="Type that bytes are counted in."),
]
_Out = Annotated[Path | None, typer.Option(metavar="DIR", help="Write DIR/config.json as well.")]


def derive(
    base: _Base,
    sublayers: _Sublayers,
    rule: _Rule = "published",
    wiring: _Wiring = None,
    head_dim: _HeadDim = 0,
    kv_heads: _KVHeads = 0,
    message_parts: _MessageParts = 1,
    late_layers: _LateLayers = "",
    dtype: _DType = "bfloat16",
    out: _Out = None,
) -> None:
    """Derive the Kraken, or shared, configuration that matches a standard model."""
    for name, value in (("--head-dim", head_dim), ("--kv-heads", kv_heads)):
        if value < 0:
            raise KrakenError(f"{name} {value}: needs 1 or more")
    standard = _read_base(base)
    derived = derive_config(
        standard,
        sublayers,
        rule=rule,
        wiring=wiring,
        head_dim=head_dim,
        kv_heads=kv_heads,
        message_parts=message_parts,
        late_layers=late_layers,
    )
    if out is not None and (out / "config.json").exists():
        raise KrakenError(f"{out / 'config.json'} exists already: choose another --out")
    _show(base, standard, derived, _BYTES[dtype], dtype)
    if out is not None:
        from krakenlm.console import notes
        from krakenlm.files import write_json

        write_json(out / "config.json", derived.to_hf_dict())
        notes.print(f"wrote {out / 'config.json'}")


def _read_base(base: str) -> ModelConfig:
    is_size = base.lower() in (name.lower() for name in size_names())
    if is_size or not Path(base).is_dir():
        return model_config(base)
    from krakenlm.model.checkpoint import read_config

    return read_config(Path(base))


def _show(name: str, standard: ModelConfig, derived: ModelConfig, element: int, dtype: str) -> None:
    from rich.table import Table

    from krakenlm.console import results

    devices, wiring = derived.num_sublayers, derived.wiring
    kind = "Kraken" if derived.traits.own_streams else f"{wiring} model"
    table = Table(title=f"{name}: the {devices}-way {kind} that matches it", title_justify="left")
    table.add_column("")
    for heading in (standard.wiring, wiring, f"over {standard.wiring}"):
        table.add_column(heading, justify="right")

    def row(label: str, of_standard: float, of_derived: float) -> None:
        ratio = of_derived / of_standard
        table.add_row(label, f"{of_standard:,.0f}", f"{of_derived:,.0f}", f"{ratio:.3f}")

    row("hidden_size", standard.hidden_size, derived.hidden_size)
    row("num_sublayers", standard.num_sublayers, derived.num_sublayers)
    row("num_hidden_layers", standard.num_hidden_layers, derived.num_hidden_layers)
    row("heads_per_sublayer", standard.heads_per_sublayer, derived.heads_per_sublayer)
    row("kv_heads_per_sublayer", standard.kv_heads_per_sublayer, derived.kv_heads_per_sublayer)
    row("head_dim", standard.head_dim, derived.head_dim)
    row("ffn_dim", standard.ffn_dim, derived.ffn_dim)
    if derived.late_layers:
        table.add_row("late_layers", "", derived.late_layers)
    if derived.message_parts > 1:
        row("message_parts", standard.message_parts, derived.message_parts)
    table.add_section()
    row("parameters", count_parameters(standard), count_parameters(derived))
    row("attention width", standard.attention_width, derived.attention_width)
    cache = [kv_cache_bytes_per_token(config, element) for config in (standard, derived)]
    row(f"KV-cache bytes per token ({dtype})", *cache)
    row(f"  per device, {devices} devices", *(size / devices for size in cache))
    row(
        f"AllReduce bytes per token ({dtype})",
        allreduce_bytes_per_token(standard, element),
        allreduce_bytes_per_token(derived, element),
    )
    row("AllReduces per forward pass", allreduces(standard), allreduces(derived))
    hidden = [str(hidden_allreduces(config)) for config in (standard, derived)]
    table.add_row("  hidden behind compute", *hidden)
    results.print(table)
    difference = 100 * relative_difference(derived, standard)
    results.print(f"parameters differ by {difference:+.2f}%")
    if derived.traits.degree_is_a_choice:
        results.print(
            f"the weights are the same for every N: this one is {devices}, and --sublayers chooses "
            "another where the model is loaded"
        )
