"""Which model of N branches matches a standard one: the published rule and its alternatives.

The published rule (arXiv 2408.07802; design.md, section 2): keep the layers, halve the
feed-forward expansion, divide the heads among the sub-layers, and choose the width whose total
parameter count is nearest to the standard model's. Attention then grows ``sqrt(1.5 N)`` wider,
and the KV cache with it, which the alternatives avoid or soften. Without a conjunction the same
rule gives a slightly wider stream (``kraken-shared``). Where the branches share one layer's weights
nothing is narrowed: they are the standard model's.
"""

import math
from collections.abc import Iterator
from typing import Literal, NamedTuple, get_args

from krakenlm.config.costs import count_parameters
from krakenlm.config.layouts import divisors, flat_ffn_dim, laid_out
from krakenlm.config.model_config import ModelConfig
from krakenlm.config.wirings import WIRINGS, WiringName
from krakenlm.errors import ConfigError

Rule = Literal["published", "keep-width", "shared"]

# A hardware-friendly shape may differ this much from the baseline's parameter count.
_FRIENDLY_TOLERANCE = 0.01


def derive(
    base: ModelConfig,
    num_sublayers: int,
    *,
    rule: Rule = "published",
    wiring: WiringName | None = None,
    head_dim: int = 0,
    kv_heads: int = 0,
    message_parts: int = 1,
    late_layers: str = "",
) -> ModelConfig:
    """The configuration of N branches that matches a standard one.

    Args:
        base: a standard model; positions, norm, activation, vocabulary and context carry over.
        num_sublayers: N.
        rule: ``published`` narrows the stream until the parameter counts agree; ``keep-width``
            keeps d and divides heads and feed-forward among the sub-layers, so that attention
            work and KV cache equal the standard model's; ``shared`` divides them as well, and keeps
            one residual stream, so that all weights are the standard model's.
        wiring: what ``published`` and ``keep-width`` derive: kraken, which None is as well, or
            kraken-shared, whose parameters are counted without the conjunction.
        head_dim: with ``published``, hardware-friendly sizes instead of the nearest count: this
            head width, and widths in multiples of 64 (of a smaller power of two where d < 512).
        kv_heads: key and value heads of one sub-layer; 0 is one for each query head (with
            ``keep-width``: as many queries a key as the standard model has, where they divide).
        message_parts: of the derived model, see ``ModelConfig``.
        late_layers: likewise, with ``shared``.

    Raises:
        ConfigError: the heads or the feed-forward cannot be divided, no hardware-friendly shape
            comes near enough, or the wiring is none of the rule's or has no parts.
    """
    if base.traits.depends_on_degree:
        raise ConfigError(f"wiring={base.wiring!r}: derive starts from a standard model")
    if num_sublayers < 1:
        raise ConfigError(f"num_sublayers={num_sublayers}: needs 1 or more")
    if message_parts < 1:
        raise ConfigError(f"message_parts={message_parts}: needs 1 or more")
    if rule not in get_args(Rule):
        raise ConfigError(f"rule={rule!r}: choose one of {', '.join(map(repr, get_args(Rule)))}")
    if rule == "shared":
        if wiring not in (None, "shared"):
            raise ConfigError(f"wiring={wiring!r}: rule='shared' makes shared models: leave it out")
        shared = _shared(base, num_sublayers, head_dim, kv_heads)
        return shared.replace(message_parts=message_parts, late_layers=late_layers)
    if late_layers:
        raise ConfigError(f"late_layers={late_layers!r}: rule={rule!r} has layers of one kind")
    wanted = _Wanted(base, num_sublayers, _of_sublayers(rule, wiring), kv_heads, message_parts)
    return _keep_width(wanted, head_dim) if rule == "keep-width" else _published(wanted, head_dim)


def relative_difference(config: ModelConfig, base: ModelConfig) -> float:
    """Parameters of ``config`` over those of ``base``, minus 1."""
    return count_parameters(config) / count_parameters(base) - 1.0


class _Wanted(NamedTuple):
    """What is to be derived: ``n`` sub-layers of a wiring that match a standard model."""

    base: ModelConfig
    n: int
    wiring: WiringName
    kv_heads: int
    message_parts: int

    def shape(
        self, *, heads: int, hidden_size: int, head_dim: int = 0, ffn_dim: int = 0
    ) -> ModelConfig:
        return self.base.replace(
            wiring=self.wiring,
            num_sublayers=self.n,
            hidden_size=hidden_size,
            heads_per_sublayer=heads,
            kv_heads_per_sublayer=self.kv_heads,
            head_dim=head_dim,
            ffn_dim=ffn_dim or max(1, round(_halved_expansion(self.base) * hidden_size)),
            message_parts=self.message_parts,
        )


def _of_sublayers(rule: Rule, wiring: WiringName | None) -> WiringName:
    names = [name for name, traits in WIRINGS.items() if traits.own_norms]
    if wiring is None:
        return names[0]
    if wiring not in names:
        advice = "; rule='shared' makes that" if wiring == "shared" else ""
        raise ConfigError(
            f"wiring={wiring!r}: rule={rule!r} makes sub-layers with norms of their own: use "
            f"{' or '.join(names)}{advice}"
        )
    return wiring


def _published(wanted: _Wanted, head_dim: int) -> ModelConfig:
    if head_dim:
        return _friendly(wanted, head_dim)
    heads = _divide(wanted.base.num_attention_heads, wanted.n, "query heads")
    return _nearest_width(wanted, heads)


def _nearest_width(wanted: _Wanted, heads: int) -> ModelConfig:
    """The multiple of ``heads`` (and of the parts) whose parameter count is nearest to the base's.

    The count grows with the width, so halve the interval until two neighbours bracket it.
    """
    base = wanted.base

    def at(multiple: int) -> ModelConfig:
        return wanted.shape(heads=heads, hidden_size=multiple * heads)

    # Rotary positions turn pairs, so there the head's width must be even; groups of channels that
    # sums carry divide the stream's.
    parts = wanted.message_parts
    step = math.lcm(2 if base.position == "rope" else 1, parts // math.gcd(parts, heads))
    target = count_parameters(base)
    low, high = 1, 2 * flat_ffn_dim(base) // (heads * step) + 2
    while high - low > 1:
        middle = (low + high) // 2
        if count_parameters(at(middle * step)) <= target:
            low = middle
        else:
            high = middle
    return min((at(low * step), at(high * step)), key=lambda c: abs(relative_difference(c, base)))


def _keep_width(wanted: _Wanted, head_dim: int) -> ModelConfig:
    base, n, kv_heads = wanted.base, wanted.n, wanted.kv_heads
    head_dim = head_dim or base.head_dim
    if base.attention_width % head_dim:
        raise ConfigError(
            f"head_dim={head_dim} does not divide the attention width {base.attention_width}"
        )
    heads = _divide(base.attention_width // head_dim, n, f"query heads of width {head_dim}")
    if not kv_heads:
        # Grouped-query attention carries over; where its groups cannot be kept, one a sub-layer.
        queries_per_key = base.num_attention_heads // base.num_key_value_heads
        kv_heads = heads // queries_per_key if heads % queries_per_key == 0 else 1
    return wanted._replace(kv_heads=kv_heads).shape(
        heads=heads,
        hidden_size=base.hidden_size,
        head_dim=head_dim,
        ffn_dim=_divide(flat_ffn_dim(base), n, "feed-forward columns"),
    )


def _shared(base: ModelConfig, n: int, head_dim: int, kv_heads: int) -> ModelConfig:
    if head_dim or kv_heads:
        raise ConfigError(
            "rule='shared' keeps the standard model's weights: leave head_dim and kv_heads out"
        )
    return laid_out(base.replace(wiring="shared"), n)


def _friendly(wanted: _Wanted, head_dim: int) -> ModelConfig:
    """Among shapes within the tolerance, the one nearest to the published proportions."""
    base, kv_heads = wanted.base, wanted.kv_heads
    published_width = _nearest_width(wanted._replace(kv_heads=0), heads=1).hidden_size

    def distortion(config: ModelConfig) -> float:
        d = config.hidden_size
        inner = config.heads_per_sublayer * config.head_dim
        expansion = _halved_expansion(base) * d
        return (
            abs(inner / d - 1) + abs(config.ffn_dim / expansion - 1) + abs(d / published_width - 1)
        )

    candidates = list(_friendly_candidates(wanted, published_width, head_dim))
    matched = [c for c in candidates if abs(relative_difference(c, base)) <= _FRIENDLY_TOLERANCE]
    if not matched:
        raise ConfigError(
            f"head_dim={head_dim}, kv_heads={kv_heads}: no shape of round widths comes within "
            f"{_FRIENDLY_TOLERANCE:.0%} of the baseline's parameters; use head_dim=64 or 128, or "
            "kv_heads that divide the heads, or leave head_dim out"
        )
    return min(matched, key=distortion)


def _friendly_candidates(
    wanted: _Wanted, published_width: int, head_dim: int
) -> Iterator[ModelConfig]:
    base, kv_heads = wanted.base, wanted.kv_heads
    step = 64
    while step > 1 and step > published_width // 8:
        step //= 2
    centre = max(1, round(published_width / step))
    for d in (step * m for m in range(max(1, centre - 3), centre + 4)):
        if d % wanted.message_parts:
            continue
        heads_centre = max(1, round(d / head_dim))
        ffn_centre = max(1, round(_halved_expansion(base) * d / step))
        for heads in range(max(1, heads_centre - 2), heads_centre + 3):
            if kv_heads and heads % kv_heads:
                continue
            for ffn in range(max(1, ffn_centre - 6), ffn_centre + 7):
                yield wanted.shape(
                    heads=heads, hidden_size=d, head_dim=head_dim, ffn_dim=ffn * step
                )


def _halved_expansion(base: ModelConfig) -> float:
    return flat_ffn_dim(base) / base.hidden_size / 2


def _divide(total: int, n: int, what: str) -> int:
    if total % n:
        raise ConfigError(
            f"num_sublayers={n} does not divide {total} {what}: use one of {divisors(total)}"
        )
    return total // n
