"""A few layers stand for many: in the middle of a run of one wiring each does what the last did.

A model is cut to at most ``KEPT`` layers a run before it is traced. In the program found, the
piece from the first operator of a run's middle layer to the first of the next layer is then
repeated. Wirings begin in one layer what they await in the next, and no later, and chunks that
came out of step in the run before are in step again: a run's ends, three layers of each, are as
they are in the whole model. The tests compare with programs of all layers.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from krakenlm.config import ModelConfig, format_layers, layer_runs
from krakenlm.plan.program import Begin, Item, Work

KEPT = 7
"""Layers that are left of a run: three at each end, and the one that is repeated."""
_MIDDLE = KEPT // 2


class _Cut(NamedTuple):
    """A run of layers before and after."""

    start: int
    """In the shortened model."""
    kept: int
    left_out: int
    late: bool


def shortened(config: ModelConfig) -> ModelConfig:
    """The same model with fewer layers in each run of layers of one wiring."""
    cuts = list(_cuts(config))
    if not any(cut.left_out for cut in cuts):
        return config
    late = [i for cut in cuts if cut.late for i in range(cut.start, cut.start + cut.kept)]
    return config.replace(
        num_hidden_layers=sum(cut.kept for cut in cuts),
        late_layers=format_layers(late) if config.late_layers else "",
    )


def expanded(items: Sequence[Item], config: ModelConfig) -> list[Item]:
    """The whole model's items, from those of the ``shortened`` one."""
    found: list[Item] = []
    done, layers, numbers = 0, 0, 0
    for cut in _cuts(config):
        if not cut.left_out:
            continue
        start = _first_of(items, cut.start + _MIDDLE)
        end = _first_of(items, cut.start + _MIDDLE + 1)
        piece = items[start:end]
        begun = sum(isinstance(item, Begin) for item in piece)
        found += _moved(items[done:end], layers, numbers)
        for copy in range(1, cut.left_out + 1):
            found += _moved(piece, layers + copy, numbers + copy * begun)
        done, layers, numbers = end, layers + cut.left_out, numbers + cut.left_out * begun
    return found + list(_moved(items[done:], layers, numbers))


def _cuts(config: ModelConfig) -> Iterator[_Cut]:
    late = set(config.late_layer_indices)
    start = 0
    for _, layers in layer_runs(config):
        kept = min(len(layers), KEPT)
        yield _Cut(start, kept, len(layers) - kept, layers[0] in late)
        start += kept


def _first_of(items: Sequence[Item], layer: int) -> int:
    for index, item in enumerate(items):
        if isinstance(item, Work) and item.layer == layer:
            return index
    raise AssertionError("every layer computes something")


def _moved(items: Sequence[Item], layers: int, numbers: int) -> Iterator[Item]:
    for item in items:
        if not isinstance(item, Work):
            yield item._replace(number=item.number + numbers)
        elif item.layer is not None:
            yield item._replace(layer=item.layer + layers)
        else:
            yield item
