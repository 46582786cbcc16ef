"""How families name and lay out their tensors, against the canonical layout with one branch.

One table a family serves both directions. Ours has queries, keys and values in one tensor, in that
order, and the gate and the up map of SwiGLU in one; theirs may have them apart, transposed, or a
head's queries, keys and values side by side.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from krakenlm.config import ModelConfig

Shape = tuple[int, ...]
Turn = Callable[[Tensor, int], Tensor]


class Form(NamedTuple):
    """How the rows of one of their tensors lie, as maps between it and ours.

    Attributes:
        to_ours: of a tensor and its heads (0 where it has none).
        to_theirs: the way back.
        is_transposed: matrices stand the other way round.
    """

    to_ours: Turn
    to_theirs: Turn
    is_transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """One family's names.

    Attributes:
        prefix: of all names but the head's; checkpoints without a head may lack it.
        layer: of a layer's names, with its number.
        embedding: of the token embedding.
        positions: of the learned positions.
        norm: of the final norm.
        heads: of the output head, the first being what is written.
        parts: ours in a layer, and theirs that stand one under the other in it.
        forms: of those of ours where they do not simply do so.
        buffers: what checkpoints may hold in a layer, and no version reads.
    """

    prefix: str
    layer: str
    embedding: str
    positions: str
    norm: str
    heads: tuple[str, ...]
    parts: Mapping[str, tuple[str, ...]]
    forms: Mapping[str, Form]
    buffers: re.Pattern[str]


class Entry(NamedTuple):
    """One of our tensors, and where it comes from.

    Attributes:
        name: of ``KrakenForCausalLM``.
        has_branches: its first axis is over branches.
        theirs: names and shapes.
        form: of each of theirs.
        heads: of each of theirs, 0 where it has none.
    """

    name: str
    has_branches: bool
    theirs: list[tuple[str, Shape]]
    form: Form
    heads: list[int]

    def to_ours(self, tensors: Sequence[Tensor]) -> Tensor:
        """The canonical tensor that theirs are, in memory of its own."""
        pieces = zip(tensors, self.heads, strict=True)
        turned = [self.form.to_ours(tensor, heads) for tensor, heads in pieces]
        whole = torch.cat(turned)
        return whole.unsqueeze(0) if self.has_branches else whole

    def to_theirs(self, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
        """Their tensors that the canonical one of one branch is, by name."""
        whole = tensor.squeeze(0) if self.has_branches else tensor
        start = 0
        for (name, shape), heads in zip(self.theirs, self.heads, strict=True):
            is_turned = self.form.is_transposed and len(shape) == 2
            rows = shape[1] if is_turned else shape[0]
            piece = whole[start : start + rows]
            start += rows
            yield name, self.form.to_theirs(piece, heads).clone()


def _as_it_is(tensor: Tensor, heads: int) -> Tensor:
    return tensor


def _transposed(tensor: Tensor, heads: int) -> Tensor:
    return tensor.t() if tensor.dim() == 2 else tensor


def _from_heads(tensor: Tensor, heads: int) -> Tensor:
    """[heads, 3, width, ...] to [3, heads, width, ...], axes flattened."""
    return tensor.view(heads, 3, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _into_heads(tensor: Tensor, heads: int) -> Tensor:
    return tensor.view(3, heads, -1, *tensor.shape[1:]).transpose(0, 1).reshape(tensor.shape)


def _from_neighbours(tensor: Tensor, heads: int) -> Tensor:
    """Rotary pairs that are neighbours in each head, to pairs half a head apart."""
    if heads == 0:
        return tensor
    pairs = tensor.view(heads, -1, 2, *tensor.shape[1:])
    return pairs.transpose(1, 2).reshape(tensor.shape)


def _into_neighbours(tensor: Tensor, heads: int) -> Tensor:
    if heads == 0:
        return tensor
    halves = tensor.view(heads, 2, -1, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape)


PLAIN = Form(_as_it_is, _as_it_is)
CONV1D = Form(_transposed, _transposed, is_transposed=True)
BY_HEAD = Form(_from_heads, _into_heads)
NEIGHBOURS = Form(_from_neighbours, _into_neighbours)

LLAMA = Layout(
    prefix="model.",
    layer="layers.{}.",
    embedding="embed_tokens",
    positions="",
    norm="norm",
    heads=("lm_head",),
    parts={
        "norm_1": ("input_layernorm",),
        "norm_2": ("post_attention_layernorm",),
        "attention.qkv": ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        "attention.output": ("self_attn.o_proj",),
        "attention.q_norm": ("self_attn.q_norm",),
        "attention.k_norm": ("self_attn.k_norm",),
        "feed_forward.up": ("mlp.gate_proj", "mlp.up_proj"),
        "feed_forward.down": ("mlp.down_proj",),
    },
    forms={},
    buffers=re.compile(r"self_attn\.rotary_emb\.inv_freq"),
)
GPT2 = Layout(
    prefix="transformer.",
    layer="h.{}.",
    embedding="wte",
    positions="wpe",
    norm="ln_f",
    heads=("lm_head",),
    parts={
        "norm_1": ("ln_1",),
        "norm_2": ("ln_2",),
        "attention.qkv": ("attn.c_attn",),
        "attention.output": ("attn.c_proj",),
        "feed_forward.up": ("mlp.c_fc",),
        "feed_forward.down": ("mlp.c_proj",),
    },
    forms=dict.fromkeys(
        ("attention.qkv", "attention.output", "feed_forward.up", "feed_forward.down"), CONV1D
    ),
    buffers=re.compile(r"attn\.(masked_)?bias"),
)
GPT_NEOX = Layout(
    prefix="gpt_neox.",
    layer="layers.{}.",
    embedding="embed_in",
    positions="",
    norm="final_layer_norm",
    heads=("embed_out", "lm_head"),
    parts={
        "norm_1": ("input_layernorm",),
        "norm_2": ("post_attention_layernorm",),
        "attention.qkv": ("attention.query_key_value",),
        "attention.output": ("attention.dense",),
        "feed_forward.up": ("mlp.dense_h_to_4h",),
        "feed_forward.down": ("mlp.dense_4h_to_h",),
    },
    forms={"attention.qkv": BY_HEAD},
    buffers=re.compile(r"attention\.((masked_)?bias|rotary_emb\.inv_freq)"),
)

# GGUF's own names; matrices are never transposed.
GGUF = Layout(
    prefix="",
    layer="blk.{}.",
    embedding="token_embd",
    positions="position_embd",
    norm="output_norm",
    heads=("output",),
    parts={
        "norm_1": ("attn_norm",),
        "norm_2": ("ffn_norm",),
        "attention.qkv": ("attn_q", "attn_k", "attn_v"),
        "attention.output": ("attn_output",),
        "attention.q_norm": ("attn_q_norm",),
        "attention.k_norm": ("attn_k_norm",),
        "feed_forward.up": ("ffn_gate", "ffn_up"),
        "feed_forward.down": ("ffn_down",),
    },
    forms={},
    buffers=re.compile(r"(?!)"),
)
GGUF_LLAMA = replace(GGUF, forms={"attention.qkv": NEIGHBOURS})
GGUF_GPT2 = replace(
    GGUF,
    parts={**GGUF.parts, "attention.qkv": ("attn_qkv",), "feed_forward.up": ("ffn_up",)},
)


def entries(
    config: ModelConfig, layout: Layout, *, prefix: str | None = None, head: str | None = None
) -> Iterator[Entry]:
    """All tensors of a model of one branch, in the order of ``stream_shard``.

    Args:
        config: of the model.
        layout: of the other side.
        prefix: of their names where it is not the layout's.
        head: the name of their output head, by default the first of the layout's.
    """
    assert config.num_sublayers == 1, "theirs have no branches"
    prefix = layout.prefix if prefix is None else prefix
    table = (config.vocab_size, config.hidden_size)
    yield _plain("model.embed_tokens.weight", f"{prefix}{layout.embedding}.weight", table)
    if config.position == "learned":
        table = (config.max_position_embeddings, config.hidden_size)
        yield _plain("model.embed_positions.weight", f"{prefix}{layout.positions}.weight", table)
    for index in range(config.num_hidden_layers):
        of_layer = prefix + layout.layer.format(index)
        for part in _parts(config):
            yield from _of_part(part, f"model.layers.{index}.", of_layer, layout)
    norm = _Part("norm", [config.hidden_size], 0, has_bias=_norms_have_biases(config))
    for kind in norm.kinds:
        ours, theirs = f"model.norm.{kind}", f"{prefix}{layout.norm}.{kind}"
        yield Entry(ours, True, [(theirs, (config.hidden_size,))], PLAIN, [0])
    if not config.tie_word_embeddings:
        name = f"{head or layout.heads[0]}.weight"
        yield _plain("lm_head.weight", name, (config.vocab_size, config.hidden_size))


class _Part(NamedTuple):
    """A weight of a layer, and its bias: rows that theirs may have apart, and columns (0: none)."""

    name: str
    rows: list[int]
    columns: int
    has_bias: bool
    heads: tuple[int, ...] = (0,)

    @property
    def kinds(self) -> tuple[str, ...]:
        return ("weight", "bias") if self.has_bias else ("weight",)


def _plain(ours: str, theirs: str, shape: Shape) -> Entry:
    return Entry(ours, False, [(theirs, shape)], PLAIN, [0])


def _norms_have_biases(config: ModelConfig) -> bool:
    return config.bias and config.norm == "layernorm"


def _parts(config: ModelConfig) -> Iterator[_Part]:
    d, f = config.hidden_size, config.ffn_dim
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    query, key = heads * config.head_dim, kv_heads * config.head_dim
    for norm in ("norm_1", "norm_2")[: config.norms_per_layer]:
        yield _Part(norm, [d], 0, _norms_have_biases(config))
    qkv, of_each = [query, key, key], (heads, kv_heads, 0)
    yield _Part("attention.qkv", qkv, d, config.has_qkv_bias, of_each)
    up = [f, f] if config.activation == "swiglu" else [f]
    yield _Part("feed_forward.up", up, d, config.bias)
    yield _Part("attention.output", [d], query, config.bias)
    yield _Part("feed_forward.down", [d], f, config.bias)
    for norm in ("attention.q_norm", "attention.k_norm") if config.qk_norm else ():
        yield _Part(norm, [config.head_dim], 0, has_bias=False)


def _of_part(part: _Part, ours: str, theirs: str, layout: Layout) -> Iterator[Entry]:
    names, form = layout.parts[part.name], layout.forms.get(part.name, PLAIN)
    apart = len(names) > 1
    rows = part.rows if apart else [sum(part.rows)]
    heads = [*part.heads, *[0] * len(rows)][: len(rows)]
    for kind in part.kinds:
        shapes: list[Shape] = [(n, part.columns) if part.columns else (n,) for n in rows]
        if kind == "bias":
            shapes = [(n,) for n in rows]
        elif form.is_transposed:
            shapes = [shape[::-1] for shape in shapes]
        of_theirs = [f"{theirs}{name}.{kind}" for name in names]
        yield Entry(
            f"{ours}{part.name}.{kind}",
            True,
            list(zip(of_theirs, shapes, strict=True)),
            form,
            heads,
        )
