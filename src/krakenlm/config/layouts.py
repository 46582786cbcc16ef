"""The same weights as another number of branches, or under another wiring."""

import math
from collections.abc import Sequence

from krakenlm.config.model_config import ModelConfig
from krakenlm.config.wirings import WIRINGS
from krakenlm.errors import ConfigError


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
    return config.replace(wiring=wiring, message_parts=1, late_layers="")


def awaited(config: ModelConfig) -> ModelConfig:
    """The model of the same weights, in the same layout, that awaits all its sums."""
    wiring = config.traits.awaited_as
    if wiring is None:
        return config
    return config.replace(wiring=wiring, message_parts=1, late_layers="")


def rewired(
    config: ModelConfig,
    wiring: str,
    num_sublayers: int,
    *,
    message_parts: int | None = None,
    late_layers: str | None = None,
) -> ModelConfig:
    """Another wiring of the same weights: another function, which needs further training.

    Args:
        config: of the weights.
        wiring: what they become.
        num_sublayers: branches that they are laid out for.
        message_parts: of the new model; by default the old one's, where the wiring has any.
        late_layers: likewise; ``all`` is all of them.

    Raises:
        ConfigError: no such wiring, the two have other weights, the branches cannot be divided, or
            the wiring has no parts or no layers of another kind.
    """
    changed = config.replace(wiring=wiring, message_parts=1, late_layers="")
    _check_same_weights(config, changed)
    if message_parts is None:
        message_parts = config.message_parts if changed.traits.parted_messages else 1
    if late_layers is None:
        late_layers = config.late_layers if changed.traits.awaited_as is not None else ""
    elif late_layers == "all":
        late_layers = ""
    changed = changed.replace(message_parts=message_parts, late_layers=late_layers)
    return laid_out(changed, num_sublayers)


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
    if config.norms_per_layer != changed.norms_per_layer:
        fits = [
            name
            for name, traits in WIRINGS.items()
            if not traits.own_norms
            and config.replace(wiring=name, message_parts=1, late_layers="").norms_per_layer
            == config.norms_per_layer
        ]
        raise ConfigError(
            f"wiring={wiring!r}: a {config.wiring} model has {config.norms_per_layer} norms a "
            f"layer and {wiring} {changed.norms_per_layer}: use one of {', '.join(fits)}"
        )


def flat_ffn_dim(base: ModelConfig) -> int:
    """Feed-forward columns of all branches."""
    return base.num_sublayers * base.ffn_dim


def divisors(total: int) -> str:
    """What divides a number, for a message."""
    return ", ".join(str(k) for k in range(1, total + 1) if total % k == 0)


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
    columns = flat_ffn_dim(config)
    for total, what in (
        (heads, "query heads"),
        (kv_heads, "key and value heads"),
        (columns, "feed-forward columns"),
    ):
        if total % n:
            fits = divisors(math.gcd(heads, kv_heads, columns))
            raise ConfigError(f"{asked} does not divide {total} {what}: use one of {fits}")
    return config.replace(
        num_sublayers=n,
        heads_per_sublayer=heads // n,
        kv_heads_per_sublayer=kv_heads // n,
        ffn_dim=columns // n,
    )
