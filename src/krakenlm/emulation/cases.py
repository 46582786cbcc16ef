"""The cases of the paper's grid, in the order that says most first, and their models.

A case is one wiring beside the standard model, in one size, on one number of devices, for one
length of prompt.
"""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from krakenlm.bench.models import Contender, parse_wirings
from krakenlm.bench.results import BASELINE
from krakenlm.config import ModelConfig, model_config
from krakenlm.errors import ConfigError, KrakenError
from krakenlm.plan.paper_grid import DEGREES, INPUT_LENS, SIZES, grid_models

WIRINGS = ("kraken", "parallel", "ladder", "shared", "lagged", "lagged-layer")
"""Beside the standard model, the one that the paper is about first."""
TINY = 64
"""``--scale tiny``."""
_LEAST_WIDTH, _HEADS, _LEAST_LAYERS = 64, 8, 2


class Case(NamedTuple):
    """One measurement.

    Attributes:
        size: of the standard model.
        devices: that one stands for.
        input_len: tokens of the prompt, before it is scaled down.
        wiring: beside the standard model, as ``krakenlm bench latency --wirings`` takes it.
    """

    size: str
    devices: int
    input_len: int
    wiring: str

    @property
    def cell(self) -> tuple[str, int, int]:
        """Of the grid: all but the wiring."""
        return self[:3]

    @property
    def file_name(self) -> str:
        """Of its results."""
        wiring = self.wiring.translate(str.maketrans("/:+", "---"))
        return f"{self.size}-{self.devices}way-{self.input_len}-{wiring}.json"

    def __str__(self) -> str:
        return f"{self.size} {self.devices}-way, {self.input_len} tokens, {self.wiring}"


class Grid(NamedTuple):
    """Which cases.

    Attributes:
        sizes: names.
        devices: numbers of devices.
        input_lens: tokens of prompts.
        wirings: beside the standard one.
        scale: widths, layers, vocabularies and prompts are divided by it, down to a least.
    """

    sizes: tuple[str, ...] = SIZES
    devices: tuple[int, ...] = DEGREES
    input_lens: tuple[int, ...] = INPUT_LENS
    wirings: tuple[str, ...] = WIRINGS
    scale: int = 1

    def cases(self) -> list[Case]:
        """One wiring in the whole grid after the other, small sizes before large ones.

        So whatever time there is buys as many cells as it can of what the paper measured.
        """
        return [
            Case(size, devices, input_len, wiring)
            for wiring in self.wirings
            for size in self.sizes
            for devices in self.devices
            for input_len in self.input_lens
        ]

    def models(self, case: Case) -> list[Contender]:
        """The standard model and the other one.

        Raises:
            KrakenError: the size has no such match.
        """
        return list(_models(case.size, case.devices, case.wiring, self.scale))

    def tokens(self, input_len: int) -> int:
        """Of the prompt that is really run."""
        return max(1, input_len // self.scale)


@cache
def _models(size: str, devices: int, wiring: str, scale: int) -> tuple[Contender, ...]:
    return tuple(grid_models(scaled(model_config(size), scale), devices, [BASELINE, wiring]))


def scaled(config: ModelConfig, scale: int) -> ModelConfig:
    """A standard shape made smaller, that eight devices can still share out.

    Args:
        config: the shape.
        scale: widths, layers and vocabulary are divided by it, down to a least.
    """
    if scale == 1:
        return config
    width = max(_LEAST_WIDTH, round(config.hidden_size / scale / _LEAST_WIDTH) * _LEAST_WIDTH)
    return config.replace(
        hidden_size=width,
        num_hidden_layers=max(_LEAST_LAYERS, round(config.num_hidden_layers / scale)),
        heads_per_sublayer=_HEADS,
        kv_heads_per_sublayer=_HEADS,
        head_dim=width // _HEADS,
        ffn_dim=4 * width,
        vocab_size=max(_LEAST_WIDTH, config.vocab_size // scale),
    )


def check_grid(grid: Grid) -> None:
    """Refuse a grid with cases that do not exist.

    Raises:
        KrakenError: names what there is none of.
    """
    for option, values in (
        ("--sizes", grid.sizes),
        ("--devices", grid.devices),
        ("--input-len", grid.input_lens),
    ):
        if len(set(values)) < len(values):
            raise KrakenError(f"{option} {_listed(values)}: give each once")
    if BASELINE in grid.wirings:
        raise KrakenError(
            f"--wirings {_listed(grid.wirings)}: {BASELINE} is measured beside each of them: "
            "leave it out"
        )
    parse_wirings(grid.wirings)
    for size in grid.sizes:
        limit = model_config(size).max_position_embeddings
        if (longest := max(grid.input_lens)) > limit:
            raise KrakenError(f"--input-len {longest}: the context of {size} holds {limit}")
    for case in grid.cases():
        try:
            grid.models(case)
        except ConfigError as error:
            raise KrakenError(f"{case}: {error}") from error


def read_scale(text: str) -> int:
    """``full``, ``tiny``, or a number to divide by.

    Raises:
        KrakenError: anything else.
    """
    named = {"full": 1, "tiny": TINY}
    if text in named:
        return named[text]
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= 1024:
        raise KrakenError(f"--scale {text}: write full, tiny, or a number from 1 to 1024")
    return int(text)


def _listed(items: Sequence[object]) -> str:
    return ",".join(map(str, items))
