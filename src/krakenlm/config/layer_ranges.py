"""Some of a model's layers, in words: ``16-29``, or ``0,2,8-11``."""

import re
from collections.abc import Iterable

from krakenlm.errors import ConfigError

# Six digits at most: int() refuses texts of thousands.
_RUN = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?")


def parse_layers(text: str, num_hidden_layers: int, name: str) -> tuple[int, ...]:
    """Indices of the layers that ``text`` names, in order; the first layer is 0.

    Args:
        text: layers and runs of them between commas; a run names its last layer too.
        num_hidden_layers: L of the model.
        name: of the field or option, for messages.

    Raises:
        ConfigError: it reads otherwise, or names layers that the model lacks or twice.
    """
    layers: list[int] = []
    for part in text.split(","):
        found = _RUN.fullmatch(part.strip())
        if not found:
            raise ConfigError(f"{name}={text!r}: give layers such as 4-11 or 0,2,8-11")
        first, last = int(found[1]), int(found[2] or found[1])
        if first > last:
            raise ConfigError(f"{name}={text!r}: {part.strip()} runs backwards: use {last}-{first}")
        if last >= num_hidden_layers:
            raise ConfigError(
                f"{name}={text!r}: the model has layers 0 to {num_hidden_layers - 1}: leave out "
                f"{last if first == last else f'what is above in {part.strip()}'}"
            )
        layers += range(first, last + 1)
    if len(set(layers)) < len(layers):
        raise ConfigError(f"{name}={text!r}: give each layer once")
    return tuple(sorted(layers))


def format_layers(layers: Iterable[int]) -> str:
    """The text that ``parse_layers`` reads back, with runs as long as can be."""
    return ",".join(
        str(run.start) if len(run) == 1 else f"{run.start}-{run.stop - 1}"
        for run in consecutive(sorted(layers))
    )


def consecutive(layers: Iterable[int]) -> list[range]:
    """Layers in order as runs that are as long as can be."""
    runs: list[range] = []
    for layer in layers:
        if runs and runs[-1].stop == layer:
            runs[-1] = range(runs[-1].start, layer + 1)
        else:
            runs.append(range(layer, layer + 1))
    return runs
