"""The architectures once more: plain, slow, obviously right.

Written from the formulas (design notes, section 2; the definitions are repeated at each function),
one sequence, one sub-layer, one head at a time, with nothing from ``krakenlm.model``. The fast
model must agree with it, forward and backward, in float64.

``w`` is the state dict of ``KrakenForCausalLM``. Tensors are [T, width]; biases are optional.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from krakenlm.config import ModelConfig

State = Mapping[str, Tensor]
Layers = Sequence[int]

# Rotary angles are float32 in the model, whatever its weights are (as in Transformers).
ANGLE_DTYPE = torch.float32


def reference_logits(config: ModelConfig, w: State, ids: Tensor) -> Tensor:
    """Logits [B, T, V] of token ids [B, T]."""
    return torch.stack([_logits_of_one_sequence(config, w, row) for row in ids])


def in_branches(config: ModelConfig, w: State, n: int) -> dict[str, Tensor]:
    """The weights of one branch, cut into those of ``n`` that share its stream.

    Branch i has the i-th part of the query heads, of the key and value heads, and of the
    feed-forward columns. Norms and output biases stay as they are.
    """
    query = config.heads_per_sublayer * config.head_dim
    key = config.kv_heads_per_sublayer * config.head_dim
    qkv = [query, key, key]
    up = [config.ffn_dim] * (2 if config.activation == "swiglu" else 1)
    cut = dict(w)
    for name, tensor in w.items():
        rows = qkv if ".qkv." in name else up if ".up." in name else None
        if rows is not None:
            parts = [part.chunk(n) for part in tensor[0].split(rows)]
            cut[name] = torch.stack([torch.cat(branch) for branch in zip(*parts, strict=True)])
        elif name.endswith(("attention.output.weight", "feed_forward.down.weight")):
            cut[name] = torch.stack(tensor[0].chunk(n, dim=1))
    return cut


def _logits_of_one_sequence(config: ModelConfig, w: State, ids: Tensor) -> Tensor:
    x = torch.stack([w["model.embed_tokens.weight"][token] for token in ids])
    if config.position == "learned":
        x = x + w["model.embed_positions.weight"][: len(ids)]
    wirings = {
        "kraken": kraken,
        "standard": standard,
        "parallel": parallel,
        "ladder": ladder,
        "shared": shared,
        "kraken-shared": shared,
        "lagged": lagged,
        "lagged-layer": lagged_layer,
    }
    for wiring, layers in _runs(config):
        x = wirings[wiring](config, w, x, layers)
    head = "model.embed_tokens.weight" if config.tie_word_embeddings else "lm_head.weight"
    return norm(config, w, "model.norm", 0, x) @ w[head].T


def _runs(config: ModelConfig) -> list[tuple[str, list[int]]]:
    """Layers in a row of one kind: those of ``late_layers``, and the others, which await.

    Each run's recursion begins with the stream that the run before ends with, all sums in it.
    """
    late = range(config.num_hidden_layers)
    if config.late_layers:
        spans = [span.split("-") for span in config.late_layers.split(",")]
        late = [i for span in spans for i in range(int(span[0]), int(span[-1]) + 1)]
    awaiting = {"lagged-layer": "parallel"}.get(config.wiring, "standard")
    runs: list[tuple[str, list[int]]] = []
    for layer in range(config.num_hidden_layers):
        wiring = config.wiring if layer in late else awaiting
        if runs and runs[-1][0] == wiring:
            runs[-1][1].append(layer)
        else:
            runs.append((wiring, [layer]))
    return runs


def kraken(config: ModelConfig, w: State, x: Tensor, layers: Layers) -> Tensor:
    """Kraken, arXiv 2408.07802.

    layer 1:       y_i = x + a_i + FFN_i(LN2_i(x + a_i)),    a_i = Attn_i(LN1_i(x))
    layer l > 1:   S = sum_j y_j,  a_i = Attn_i(LN1_i(y_i)),  z_i = a_i + S
                   y_i <- y_i + a_i + FFN_i(LN2_i(z_i))
    output:        u = sum_i W_i y_i + b

    Both sums, over j and over i, are multiplied by sum_scale, which is 1 in the paper.
    """
    sublayers = range(config.num_sublayers)
    y = [x for _ in sublayers]
    for layer in layers:
        s = config.sum_scale * sum(y)
        for i in sublayers:
            a = attention(config, w, layer, i, norm(config, w, _name(layer, "norm_1"), i, y[i]))
            a = a + bias(w, _name(layer, "attention.output"), i)
            z = y[i] + a if layer == 0 else a + s
            f = ffn(config, w, layer, i, norm(config, w, _name(layer, "norm_2"), i, z))
            f = f + bias(w, _name(layer, "feed_forward.down"), i)
            y[i] = y[i] + a + f
    u = sum(y[i] @ w["model.conjunction.weight"][i].T for i in sublayers)
    return config.sum_scale * (u + bias(w, "model.conjunction", 0))


def standard(config: ModelConfig, w: State, x: Tensor, layers: Layers) -> Tensor:
    """GPT-2's pre-norm layer: x <- x + Attn(LN1(x)), x <- x + FFN(LN2(x))."""
    for layer in layers:
        x = x + _whole_attention(config, w, layer, norm(config, w, _name(layer, "norm_1"), 0, x))
        x = x + _whole_ffn(config, w, layer, norm(config, w, _name(layer, "norm_2"), 0, x))
    return x


def parallel(config: ModelConfig, w: State, x: Tensor, layers: Layers) -> Tensor:
    """GPT-J and PaLM: n = LN(x), x <- x + Attn(n) + FFN(n); GPT-NeoX has a norm for each."""
    for layer in layers:
        x = x + _both(config, w, layer, x)
    return x


def ladder(config: ModelConfig, w: State, x: Tensor, layers: Layers) -> Tensor:
    """Ladder Residual, arXiv 2501.06589: half block i reads x_{i-2}, x_i = x_{i-1} + h_i(x_{i-2}).

    The half blocks are attention and feed-forward in turn, each with its norm; the first two
    read the embedding.
    """
    xs = [x, x]
    for layer in layers:
        n = norm(config, w, _name(layer, "norm_1"), 0, xs[-2])
        xs.append(xs[-1] + _whole_attention(config, w, layer, n))
        n = norm(config, w, _name(layer, "norm_2"), 0, xs[-2])
        xs.append(xs[-1] + _whole_ffn(config, w, layer, n))
    return xs[-1]


def shared(config: ModelConfig, w: State, x: Tensor, layers: Layers) -> Tensor:
    """Kraken's schedule over one stream; x_0 is the embedding, o_{i,0} = 0.

    With p = message_parts, layer l > 1 sums the channels c of one group,
    [(l-1) mod p d/p, ((l-1) mod p + 1) d/p); with p = 1 they are all channels.

    a_i = Attn_i(LN1_i(x_{l-1} + o_{i,l-1}))
    x_l = x_{l-1} + sum_j o_{j,l-1} in c, x_{l-1} elsewhere
    r_i = a_i in c, o_{i,l-1} + a_i elsewhere
    o_{i,l} = r_i + FFN_i(LN2_i(x_l + r_i))
    output: x_L + sum_j o_{j,L}

    Norms and output biases are a sub-layer's own in kraken-shared. In shared the norms are common
    to all, and an output bias belongs to branch 0.
    """
    branches = range(config.num_sublayers)
    has_own = config.wiring == "kraken-shared"
    width = config.hidden_size // config.message_parts
    own = [torch.zeros_like(x) for _ in branches]
    for layer in layers:
        summed = torch.zeros(config.hidden_size, dtype=x.dtype)
        start = layer % config.message_parts * width
        summed[start : start + width] = 1.0
        before, x = x, x + summed * sum(own)
        for i in branches:
            mine, brings = (i, 1.0) if has_own else (0, float(i == 0))
            n = norm(config, w, _name(layer, "norm_1"), mine, before + own[i])
            a = attention(config, w, layer, i, n)
            a = a + brings * bias(w, _name(layer, "attention.output"), mine)
            rest = (1 - summed) * own[i] + a
            n = norm(config, w, _name(layer, "norm_2"), mine, x + rest)
            f = ffn(config, w, layer, i, n)
            own[i] = rest + f + brings * bias(w, _name(layer, "feed_forward.down"), mine)
    return x + sum(own)


def lagged(config: ModelConfig, w: State, x: Tensor, layers: Layers) -> Tensor:
    """x_l = x_{l-1} + Attn(LN1(x_{l-2})) + FFN(LN2(x_{l-1})), with x_{-1} = x_0, the embedding."""
    xs = [x, x]
    for layer in layers:
        n1 = norm(config, w, _name(layer, "norm_1"), 0, xs[-2])
        n2 = norm(config, w, _name(layer, "norm_2"), 0, xs[-1])
        xs.append(
            xs[-1] + _whole_attention(config, w, layer, n1) + _whole_ffn(config, w, layer, n2)
        )
    return xs[-1]


def lagged_layer(config: ModelConfig, w: State, x: Tensor, layers: Layers) -> Tensor:
    """``parallel`` of x_{l-2}: x_l = x_{l-1} + Attn(n) + FFN(n), x_{-1} = x_0, the embedding."""
    xs = [x, x]
    for layer in layers:
        xs.append(xs[-1] + _both(config, w, layer, xs[-2]))
    return xs[-1]


def _both(config: ModelConfig, w: State, layer: int, x: Tensor) -> Tensor:
    n1 = norm(config, w, _name(layer, "norm_1"), 0, x)
    n2 = n1 if config.parallel_norms == 1 else norm(config, w, _name(layer, "norm_2"), 0, x)
    return _whole_attention(config, w, layer, n1) + _whole_ffn(config, w, layer, n2)


def _whole_attention(config: ModelConfig, w: State, layer: int, x: Tensor) -> Tensor:
    """The sum over tensor-parallel shards; the output bias counts once."""
    shards = [attention(config, w, layer, i, x) for i in range(config.num_sublayers)]
    return sum(shards) + bias(w, _name(layer, "attention.output"), 0)


def _whole_ffn(config: ModelConfig, w: State, layer: int, x: Tensor) -> Tensor:
    shards = [ffn(config, w, layer, i, x) for i in range(config.num_sublayers)]
    return sum(shards) + bias(w, _name(layer, "feed_forward.down"), 0)


def attention(config: ModelConfig, w: State, layer: int, i: int, x: Tensor) -> Tensor:
    """Attention of sub-layer i, before the output bias.

    Rows of the weight: h query heads, g key heads, g value heads, each of width e. Query head j
    reads key and value head j // (h / g).
    """
    h, g, e = config.heads_per_sublayer, config.kv_heads_per_sublayer, config.head_dim
    qkv = x @ w[_name(layer, "attention.qkv.weight")][i].T + bias(
        w, _name(layer, "attention.qkv"), i
    )
    heads = []
    for j in range(h):
        key = h + j // (h // g)
        q = qkv[:, j * e : (j + 1) * e]
        k = qkv[:, key * e : (key + 1) * e]
        v = qkv[:, (key + g) * e : (key + g + 1) * e]
        if config.qk_norm:
            q = _rms(config, q) * _of_sublayer(config, w, _name(layer, "attention.q_norm"), i)
            k = _rms(config, k) * _of_sublayer(config, w, _name(layer, "attention.k_norm"), i)
        if config.position == "rope":
            q, k = rope(config, q), rope(config, k)
        heads.append(softmax(q @ k.T / math.sqrt(e) + causal_mask(len(x), x.dtype)) @ v)
    return torch.cat(heads, dim=1) @ w[_name(layer, "attention.output.weight")][i].T


def ffn(config: ModelConfig, w: State, layer: int, i: int, x: Tensor) -> Tensor:
    """Feed-forward network of sub-layer i, before the output bias.

    Rows of SwiGLU's first weight: the gate's, then the up map's.
    """
    up = x @ w[_name(layer, "feed_forward.up.weight")][i].T + bias(
        w, _name(layer, "feed_forward.up"), i
    )
    if config.activation == "swiglu":
        gate, up = up[:, : config.ffn_dim], up[:, config.ffn_dim :]
        inner = gate / (1 + torch.exp(-gate)) * up
    elif config.activation == "gelu-exact":
        inner = 0.5 * up * (1 + torch.erf(up / math.sqrt(2)))
    else:
        inner = 0.5 * up * (1 + torch.tanh(math.sqrt(2 / math.pi) * (up + 0.044715 * up**3)))
    return inner @ w[_name(layer, "feed_forward.down.weight")][i].T


def norm(config: ModelConfig, w: State, name: str, i: int, x: Tensor) -> Tensor:
    """LayerNorm or RMSNorm with the i-th set of weights."""
    if config.norm == "layernorm":
        x = x - x.sum(dim=1, keepdim=True) / x.shape[1]
    return _rms(config, x) * w[f"{name}.weight"][i] + bias(w, name, i)


def _rms(config: ModelConfig, x: Tensor) -> Tensor:
    mean_square = (x * x).sum(dim=1, keepdim=True) / x.shape[1]
    return x / torch.sqrt(mean_square + config.norm_eps)


def _of_sublayer(config: ModelConfig, w: State, name: str, i: int) -> Tensor:
    """A norm on heads: Kraken's sub-layers have their own, the other wirings one a layer."""
    return w[f"{name}.weight"][i if config.wiring in ("kraken", "kraken-shared") else 0]


def rope(config: ModelConfig, x: Tensor) -> Tensor:
    """Turn the pair (x_j, x_{j + r/2}) of position t by t f_j; only the first r channels turn."""
    half = (config.rotary_dim or config.head_dim) // 2
    turned = x.clone()
    for j in range(half):
        angle = torch.arange(len(x), dtype=ANGLE_DTYPE) * _frequency(config, j, half)
        cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
        turned[:, j] = x[:, j] * cos - x[:, j + half] * sin
        turned[:, j + half] = x[:, j] * sin + x[:, j + half] * cos
    return turned


def _frequency(config: ModelConfig, j: int, half: int) -> Tensor:
    """f_j = theta^(-j / half), stretched for long contexts.

    Linear: all divided by the factor. Llama 3.1, by the wavelength 2 pi / f: below the original
    context / high factor as it is, above the original context / low factor divided by the factor,
    between the two a mixture, by where original context / wavelength lies from low to high.
    """
    f = config.rope_theta ** torch.tensor(-j / half, dtype=ANGLE_DTYPE)
    if config.rope_stretch == "none":
        return f
    if config.rope_stretch == "linear":
        return f / config.rope_factor
    low, high = config.rope_low_freq_factor, config.rope_high_freq_factor
    wavelength = 2 * math.pi / f
    if wavelength < config.rope_original_context / high:
        return f
    if wavelength > config.rope_original_context / low:
        return f / config.rope_factor
    mix = (config.rope_original_context / wavelength - low) / (high - low)
    return mix * f + (1 - mix) * f / config.rope_factor


def softmax(scores: Tensor) -> Tensor:
    exponentials = torch.exp(scores - scores.max(dim=1, keepdim=True).values)
    return exponentials / exponentials.sum(dim=1, keepdim=True)


def causal_mask(tokens: int, dtype: torch.dtype) -> Tensor:
    """0 where a query may look, minus infinity at later keys."""
    mask = torch.zeros(tokens, tokens, dtype=dtype)
    for query in range(tokens):
        mask[query, query + 1 :] = -math.inf
    return mask


def bias(w: State, name: str, i: int) -> Tensor | float:
    key = f"{name}.bias"
    return w[key][i] if key in w else 0.0


def _name(layer: int, what: str) -> str:
    return f"model.layers.{layer}.{what}"
