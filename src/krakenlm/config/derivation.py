"""Which model of N branches matches a standard one: the published rule and its alternatives.

The published rule (arXiv 2408.07802; design.md, section 2): keep the layers, halve the
feed-forward expansion, divide the heads among the sub-layers, and choose the width whose total
parameter count is nearest to the standard model's. Attention then grows ``sqrt(1.5 N)`` wider,
and the KV cache with it, which the alternatives avoid or soften. Without a conjunction the same
rule gives a slightly wider stream (``kraken-shared``). Where the branches share one layer's weights
nothing is narrowed: they are the standard model's.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from krakenlm.config.costs import count_parameters
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
        return shared.replace(message_parts=message_parts)
    wanted = _Wanted(base, num_sublayers, _of_sublayers(rule, wiring), kv_heads, message_parts)
    return _keep_width(wanted, head_dim) if rule == "keep-width" else _published(wanted, head_dim)


def laid_out(config: ModelConfig, num_sublayers: int) -> ModelConfig:
    """The same weights as another number of branches, where branches share their norms.

    For wirings that depend on the degree this is another function of the same weights, for the
    others another way to store them.

    Raises:
        ConfigError: each branch has norms of its own, or heads or feed-forward columns cannot be
            divided.
    """
    if num_sublayers == config.num_sublayers:
        return config
    if config.traits.own_norms:
        raise ConfigError(f"num_sublayers={num_sublayers}: {_sublayers_are_fixed(config)}")
    return _divided(config, num_sublayers, f"num_sublayers={num_sublayers}")


def with_sublayers(config: ModelConfig, sublayers: int | None) -> ModelConfig:
    """A model with the N that ``--sublayers`` chooses when it is loaded; None is its own.

    Raises:
        ConfigError: N is no choice for this wiring, or heads or feed-forward columns cannot be
            divided so.
    """
    if sublayers is None:
        return config
    option = f"--sublayers {sublayers}"
    _check_choice(config, option)
    return _divided(config, sublayers, option)


def finest_layout(config: ModelConfig, sublayers: Sequence[int]) -> ModelConfig:
    """The same weights in branches of which those of each of several N are made up.

    Raises:
        ConfigError: N is no choice for this wiring, or heads or feed-forward columns cannot be
            divided by one of them, or the configuration's own N is not among them.
    """
    asked = f"sublayers={list(sublayers)}"
    _check_choice(config, asked)
    for n in sublayers:
        _divided(config, n, f"{asked}: {n}")
    if config.num_sublayers not in sublayers:
        raise ConfigError(
            f"{asked}: the model's own num_sublayers={config.num_sublayers}, which a saved model "
            "computes with, is not among them: add it, or give the model one of them"
        )
    return laid_out(config, math.lcm(*sublayers))


def without_degree(config: ModelConfig) -> ModelConfig:
    """The same function and weights in a wiring that any number of devices can share out.

    That is for models of one branch, where there is such a wiring; others stay what they are.
    """
    wiring = config.traits.with_one_branch
    if config.num_sublayers > 1 or wiring is None:
        return config
    return config.replace(wiring=wiring, message_parts=1)


def rewired(
    config: ModelConfig, wiring: str, num_sublayers: int, *, message_parts: int | None = None
) -> ModelConfig:
    """Another wiring of the same weights: another function, which needs further training.

    Args:
        config: of the weights.
        wiring: what they become.
        num_sublayers: branches that they are laid out for.
        message_parts: of the new model; by default the old one's, where the wiring has any.

    Raises:
        ConfigError: no such wiring, the two have other weights, the branches cannot be divided, or
            the wiring has no parts.
    """
    if wiring == config.wiring:
        parts = config.message_parts if message_parts is None else message_parts
        return laid_out(config, num_sublayers).replace(message_parts=parts)
    changed = config.replace(wiring=wiring, message_parts=1)
    _check_same_weights(config, changed)
    if message_parts is None:
        message_parts = config.message_parts if changed.traits.parted_messages else 1
    return laid_out(changed.replace(message_parts=message_parts), num_sublayers)


def _check_same_weights(config: ModelConfig, changed: ModelConfig) -> None:
    now, then, wiring = config.traits, changed.traits, changed.wiring
    for has, will_have, what in (
        (now.own_norms, then.own_norms, "norms for each branch"),
        (now.conjunction, then.conjunction, "a conjunction"),
    ):
        if has != will_have:
            owner, other = (config.wiring, wiring) if has else (wiring, config.wiring)
            raise ConfigError(
                f"wiring={wiring!r}: {config.wiring} and {wiring} differ in their weights: {owner} "
                f"has {what}, which {other} has not: train the new model from the start"
            )
    if now.norms_per_layer != then.norms_per_layer:
        fits = [
            name
            for name, traits in WIRINGS.items()
            if not traits.own_norms and traits.norms_per_layer == now.norms_per_layer
        ]
        raise ConfigError(
            f"wiring={wiring!r}: a {config.wiring} model has {now.norms_per_layer} norms a layer "
            f"and {wiring} {then.norms_per_layer}: use one of {', '.join(fits)}"
        )


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
    low, high = 1, 2 * _flat_ffn_dim(base) // (heads * step) + 2
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
        ffn_dim=_divide(_flat_ffn_dim(base), n, "feed-forward columns"),
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


def _check_choice(config: ModelConfig, asked: str) -> None:
    """Refuse another N where it changes the weights or nothing at all."""
    if config.traits.own_norms:
        raise ConfigError(f"{asked}: {_sublayers_are_fixed(config)}: leave it out")
    if not config.traits.degree_is_a_choice:
        raise ConfigError(
            f"{asked}: a {config.wiring} model is the same function for any number of them and "
            "of devices: leave it out"
        )


def _sublayers_are_fixed(config: ModelConfig) -> str:
    return (
        f"this {config.wiring} model has {config.num_sublayers} sub-layers with norms of their "
        "own, which is fixed when it is trained"
    )


def _divided(config: ModelConfig, n: int, asked: str) -> ModelConfig:
    """All heads and columns of a layer in ``n`` branches; ``asked`` is who wants them."""
    if n < 1:
        raise ConfigError(f"{asked}: needs 1 or more")
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    columns = _flat_ffn_dim(config)
    for total, what in (
        (heads, "query heads"),
        (kv_heads, "key and value heads"),
        (columns, "feed-forward columns"),
    ):
        if total % n:
            fits = _divisors(math.gcd(heads, kv_heads, columns))
            raise ConfigError(f"{asked} does not divide {total} {what}: use one of {fits}")
    return config.replace(
        num_sublayers=n,
        heads_per_sublayer=heads // n,
        kv_heads_per_sublayer=kv_heads // n,
        ffn_dim=columns // n,
    )


def _halved_expansion(base: ModelConfig) -> float:
    return _flat_ffn_dim(base) / base.hidden_size / 2


def _flat_ffn_dim(base: ModelConfig) -> int:
    return base.num_sublayers * base.ffn_dim


def _divide(total: int, n: int, what: str) -> int:
    if total % n:
        raise ConfigError(
            f"num_sublayers={n} does not divide {total} {what}: use one of {_divisors(total)}"
        )
    return total // n


def _divisors(total: int) -> str:
    return ", ".join(str(k) for k in range(1, total + 1) if total % k == 0)
