"""One table of model sizes for all architectures, under the names people know."""

from dataclasses import dataclass
from typing import Any

from krakenlm.config.model_config import ModelConfig
from krakenlm.config.wirings import WIRINGS, WiringName
from krakenlm.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Size:
    """Shape of a standard decoder; the other single-stream wirings share it."""

    names: tuple[str, ...]
    num_hidden_layers: int
    hidden_size: int
    num_heads: int
    max_position_embeddings: int


@dataclass(frozen=True, kw_only=True)
class PublishedKraken:
    """One of the configurations trained in arXiv 2408.07802, against ``baseline``."""

    name: str
    baseline: str
    num_sublayers: int
    hidden_size: int


def _size(names: str, layers: int, hidden: int, heads: int, context: int) -> Size:
    return Size(
        names=tuple(names.split()),
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_heads=heads,
        max_position_embeddings=context,
    )


# GPT-2: Radford et al. 2019. 758M: the baseline of Kraken's 760M row. 1.3B to 175B: the shapes of
# the paper's latency grid, head_dim 128, with GPT-3's context of 2048.
SIZES: tuple[Size, ...] = (
    _size("gpt2 gpt2-small 124M 125M", 12, 768, 12, 1024),
    _size("gpt2-medium 355M 350M", 24, 1024, 16, 1024),
    _size("758M 760M", 24, 1536, 16, 1024),
    _size("gpt2-large 774M", 36, 1280, 20, 1024),
    _size("gpt2-xl 1.5B", 48, 1600, 25, 1024),
    _size("1.3B", 24, 2048, 16, 2048),
    _size("6.7B", 32, 4096, 32, 2048),
    _size("13B", 40, 5120, 40, 2048),
    _size("65B", 80, 8192, 64, 2048),
    _size("175B", 96, 12288, 96, 2048),
)
GPT2_VOCAB_SIZE = 50257


def _published(name: str, baseline: str, num_sublayers: int, hidden_size: int) -> PublishedKraken:
    return PublishedKraken(
        name=name, baseline=baseline, num_sublayers=num_sublayers, hidden_size=hidden_size
    )


PUBLISHED_KRAKEN: tuple[PublishedKraken, ...] = (
    _published("kraken-125M-2way", "124M", 2, 678),
    _published("kraken-125M-4way", "124M", 4, 504),
    _published("kraken-125M-6way", "124M", 6, 418),
    _published("kraken-350M-2way", "355M", 2, 888),
    _published("kraken-350M-4way", "355M", 4, 644),
    _published("kraken-760M-4way", "758M", 4, 960),
)


def size_names() -> list[str]:
    """Every name that ``model_config`` knows."""
    names = [name for size in SIZES for name in size.names]
    return names + [published.name for published in PUBLISHED_KRAKEN]


def model_config(name: str, *, wiring: WiringName | None = None, **changes: Any) -> ModelConfig:
    """The configuration of a named size.

    Args:
        name: a name or a parameter count from the table, in any case: ``gpt2``, ``124m``,
            ``kraken-125M-2way``.
        wiring: for a standard shape, which of the wirings that any number of devices can share
            out: standard by default. Those of N branches come from ``derive``. For a published
            Kraken, kraken (the default) or kraken-shared.
        changes: fields to set otherwise, such as ``vocab_size``.

    Raises:
        ConfigError: an unknown name, or a wiring that the named shape does not have.
    """
    if wiring is not None and wiring not in WIRINGS:
        raise ConfigError(f"wiring={wiring!r}: choose one of {', '.join(WIRINGS)}")
    for published in PUBLISHED_KRAKEN:
        if published.name.lower() == name.lower():
            if wiring is not None and not WIRINGS[wiring].own_norms:
                raise ConfigError(f"wiring={wiring!r}: {published.name} is a Kraken: leave it out")
            return _published_config(published, wiring or "kraken", changes)
    size = _find(name)
    if wiring is not None and WIRINGS[wiring].depends_on_degree:
        option = "--wiring" if WIRINGS[wiring].own_norms else "--rule"
        raise ConfigError(
            f"wiring={wiring!r}: {name} is a standard shape; derive its match with "
            f"`krakenlm derive {name} --sublayers N {option} {wiring}` or krakenlm.derive"
        )
    return ModelConfig.from_dict(
        {
            "wiring": wiring or "standard",
            "num_sublayers": 1,
            "hidden_size": size.hidden_size,
            "num_hidden_layers": size.num_hidden_layers,
            "heads_per_sublayer": size.num_heads,
            "vocab_size": GPT2_VOCAB_SIZE,
            "max_position_embeddings": size.max_position_embeddings,
            **changes,
        }
    )


def _published_config(
    published: PublishedKraken, wiring: WiringName, changes: dict[str, Any]
) -> ModelConfig:
    baseline = _find(published.baseline)
    return ModelConfig.from_dict(
        {
            "wiring": wiring,
            "num_sublayers": published.num_sublayers,
            "hidden_size": published.hidden_size,
            "num_hidden_layers": baseline.num_hidden_layers,
            "heads_per_sublayer": baseline.num_heads // published.num_sublayers,
            "vocab_size": GPT2_VOCAB_SIZE,
            "max_position_embeddings": baseline.max_position_embeddings,
            **changes,
        }
    )


def _find(name: str) -> Size:
    for size in SIZES:
        if name.lower() in (known.lower() for known in size.names):
            return size
    raise ConfigError(f"unknown size {name!r}: choose one of {', '.join(size_names())}")
