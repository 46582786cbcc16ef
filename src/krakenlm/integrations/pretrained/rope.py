"""Rotary positions as Transformers' configurations spell them."""

from collections.abc import Mapping
from typing import Any

from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError

Fields = dict[str, Any]

# Of each way to stretch that ``ModelConfig`` has: their keys, and our fields.
_KEYS: dict[str, dict[str, str]] = {
    "default": {},
    "linear": {"factor": "rope_factor"},
    "llama3": {
        "factor": "rope_factor",
        "low_freq_factor": "rope_low_freq_factor",
        "high_freq_factor": "rope_high_freq_factor",
        "original_max_position_embeddings": "rope_original_context",
    },
}
# "type" is how older files spell "rope_type".
_OF_ALL = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}


def read_rope(parameters: Mapping[str, Any], head_dim: int, *, partial: bool) -> Fields:
    """The fields of ours that Transformers 5's ``rope_parameters`` are.

    Args:
        parameters: as its configuration classes fill them in, from older spellings too.
        head_dim: of the model.
        partial: whether the family turns a part of each head where they say so.

    Raises:
        KrakenError: frequencies that ``ModelConfig`` cannot say.
    """
    parameters = parameters.get("full_attention") or parameters  # of a table for kinds of layers
    kind = parameters.get("rope_type") or "default"
    if kind not in _KEYS:
        raise KrakenError(
            f"rope_type={kind!r}: frequencies of this kind cannot be represented: only "
            f"{', '.join(_KEYS)} can"
        )
    keys = _KEYS[kind]
    given = {key for key, value in parameters.items() if value is not None}
    for key in sorted(given - _OF_ALL - keys.keys()):
        raise KrakenError(
            f"rope_parameters has {key}={parameters[key]!r}, which rope_type={kind!r} does not "
            "know: leave it out of config.json if it changes nothing"
        )
    for key in sorted(keys.keys() - given):
        raise KrakenError(f"rope_parameters lacks {key}, which rope_type={kind!r} needs")
    fields = {ours: parameters[theirs] for theirs, ours in keys.items()}
    share = parameters.get("partial_rotary_factor", 1.0)
    turned = int(head_dim * share)
    if turned != head_dim and not (partial and turned > 0):
        raise KrakenError(
            f"partial_rotary_factor={share}: models of this family that turn a part of each head "
            "cannot be represented"
        )
    return {
        "position": "rope",
        "rope_theta": parameters["rope_theta"],
        "rope_stretch": "none" if kind == "default" else kind,
        "rotary_dim": 0 if turned == head_dim else turned,
        **fields,
    }


def write_rope(config: ModelConfig) -> Fields:
    """``rope_theta`` and ``rope_scaling``, which all versions of Transformers read."""
    scaling = None
    if config.rope_stretch != "none":
        keys = _KEYS[config.rope_stretch]
        fields = {theirs: getattr(config, ours) for theirs, ours in keys.items()}
        scaling = {"rope_type": config.rope_stretch, **fields}
    return {"rope_theta": config.rope_theta, "rope_scaling": scaling}
