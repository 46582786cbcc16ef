"""Which sums over branches a forward pass begins, and which of them hide behind compute."""

from itertools import groupby
from typing import NamedTuple

from krakenlm.config.model_config import ModelConfig
from krakenlm.config.wirings import WIRINGS, WiringName


class LayerRun(NamedTuple):
    """Layers in a row that one wiring joins.

    Attributes:
        wiring: the model's own, or where ``late_layers`` leaves layers out the one that awaits.
        layers: their indices.
    """

    wiring: WiringName
    layers: range


def layer_runs(config: ModelConfig) -> list[LayerRun]:
    """The model's layers in runs of one kind; most models are one run."""
    late = set(config.late_layer_indices)
    runs = []
    for is_late, group in groupby(range(config.num_hidden_layers), late.__contains__):
        wiring = config.wiring if is_late else config.traits.awaited_as
        assert wiring is not None, "checked by ModelConfig"
        layers = list(group)
        runs.append(LayerRun(wiring, range(layers[0], layers[-1] + 1)))
    return runs


def allreduces(config: ModelConfig) -> int:
    """AllReduces in one forward pass."""
    return len(are_hidden(config))


def hidden_allreduces(config: ModelConfig) -> int:
    """How many of ``allreduces`` run behind compute."""
    return sum(are_hidden(config))


def are_hidden(config: ModelConfig) -> list[bool]:
    """Of each AllReduce of a forward pass, in order, whether it has compute to hide behind.

    A run of late layers awaits its last sum with nothing beside it, whatever comes next.
    """
    hidden: list[bool] = []
    for wiring, layers in layer_runs(config):
        sums = WIRINGS[wiring].allreduces(len(layers))
        behind = WIRINGS[wiring].hidden(len(layers))
        hidden += [True] * behind + [False] * (sums - behind)
    return hidden
