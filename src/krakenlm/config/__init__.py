"""Configurations, sizes, derivation and costs, on the standard library alone."""

from krakenlm.config.costs import (
    allreduce_bytes_per_token,
    count_parameters,
    kv_cache_bytes_per_token,
    training_flops_per_token,
)
from krakenlm.config.derivation import (
    Rule,
    derive,
    finest_layout,
    laid_out,
    relative_difference,
    rewired,
    with_sublayers,
    without_degree,
)
from krakenlm.config.model_config import (
    ARCHITECTURE,
    DERIVED,
    MODEL_TYPE,
    ModelConfig,
)
from krakenlm.config.sizes import SIZES, model_config, size_names
from krakenlm.config.wirings import WIRINGS, WiringName, WiringTraits

__all__ = [
    "ARCHITECTURE",
    "DERIVED",
    "MODEL_TYPE",
    "SIZES",
    "WIRINGS",
    "ModelConfig",
    "Rule",
    "WiringName",
    "WiringTraits",
    "allreduce_bytes_per_token",
    "count_parameters",
    "derive",
    "finest_layout",
    "kv_cache_bytes_per_token",
    "laid_out",
    "model_config",
    "relative_difference",
    "rewired",
    "size_names",
    "training_flops_per_token",
    "with_sublayers",
    "without_degree",
]
