"""Configurations, sizes, derivation and costs, on the standard library alone."""

from krakenlm.config.costs import (
    allreduce_bytes_per_token,
    count_parameters,
    kv_cache_bytes_per_token,
    training_flops_per_token,
)
from krakenlm.config.derivation import Rule, derive, relative_difference
from krakenlm.config.layer_ranges import format_layers, parse_layers
from krakenlm.config.layouts import (
    awaited,
    finest_layout,
    laid_out,
    rewired,
    with_sublayers,
    without_degree,
)
from krakenlm.config.model_config import (
    ARCHITECTURE,
    DERIVED,
    MODEL_TYPE,
    OF_TRAINING,
    ModelConfig,
)
from krakenlm.config.schedule import (
    LayerRun,
    allreduces,
    are_hidden,
    hidden_allreduces,
    layer_runs,
)
from krakenlm.config.sizes import SIZES, model_config, size_names
from krakenlm.config.wirings import WIRINGS, WiringName, WiringTraits

__all__ = [
    "ARCHITECTURE",
    "DERIVED",
    "MODEL_TYPE",
    "OF_TRAINING",
    "SIZES",
    "WIRINGS",
    "LayerRun",
    "ModelConfig",
    "Rule",
    "WiringName",
    "WiringTraits",
    "allreduce_bytes_per_token",
    "allreduces",
    "are_hidden",
    "awaited",
    "count_parameters",
    "derive",
    "finest_layout",
    "format_layers",
    "hidden_allreduces",
    "kv_cache_bytes_per_token",
    "laid_out",
    "layer_runs",
    "model_config",
    "parse_layers",
    "relative_difference",
    "rewired",
    "size_names",
    "training_flops_per_token",
    "with_sublayers",
    "without_degree",
]
