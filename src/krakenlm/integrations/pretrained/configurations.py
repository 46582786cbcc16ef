"""A Transformers ``config.json`` into a configuration of ours, and back."""

import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from transformers import AutoConfig, PreTrainedConfig

from krakenlm.config import OF_TRAINING, ModelConfig
from krakenlm.errors import KrakenError, first_line
from krakenlm.integrations.pretrained.families import FAMILIES, Family, read_common
from krakenlm.integrations.pretrained.refusals import refuse_what_cannot_be

TOKENS = ("bos_token_id", "eos_token_id", "pad_token_id")
"""Keys of a ``config.json`` that name tokens."""

_DEFAULTS = ModelConfig()


class Understood(NamedTuple):
    """What a ``config.json`` of another family says.

    Attributes:
        family: the model's.
        config: the same in fields of ours.
        tokens: those of ``TOKENS`` that it or its family's class names.
        notes: what is left out that changes training alone.
    """

    family: Family
    config: ModelConfig
    tokens: dict[str, Any]
    notes: list[str]


def understand(values: Mapping[str, Any]) -> Understood:
    """Read the contents of a ``config.json``.

    Raises:
        KrakenError: a family that is not known, or something that cannot be represented, by name.
    """
    family = FAMILIES.get(str(values.get("model_type")))
    if family is None:
        raise KrakenError(
            f"model_type={values.get('model_type')!r}: models of this family cannot be brought in: "
            f"only {', '.join(FAMILIES)} can"
        )
    theirs = _filled_in(values)
    refuse_what_cannot_be(theirs.to_dict(), theirs.max_position_embeddings)
    try:
        fields = {**read_common(theirs, family), **family.read(theirs)}
        config = ModelConfig.from_dict(fields)
    except (AttributeError, TypeError, ZeroDivisionError) as error:
        raise KrakenError(
            f"values of the wrong kind ({first_line(error)}): copy it again"
        ) from error
    rates = {key: getattr(theirs, key) for key in family.dropouts if key}
    dropped = [f"{key}={rate}" for key, rate in rates.items() if rate != config.dropout]
    return Understood(
        family,
        config,
        _tokens(theirs, config.vocab_size),
        [f"{', '.join(dropped)}: left out, dropout here is one for all places"] if dropped else [],
    )


def write_config(config: ModelConfig, model_type: str) -> dict[str, Any]:
    """A ``config.json`` for a model of one branch.

    Args:
        config: of the model.
        model_type: of the family.

    Raises:
        KrakenError: the family has no such models; the message names the fields in the way.
    """
    family = FAMILIES[model_type]
    values = {
        "model_type": model_type,
        "architectures": [family.architecture],
        **family.write(config),
    }
    in_the_way = differences(config, understand(values).config)
    if in_the_way:
        raise KrakenError(f"no {model_type} model has {', '.join(in_the_way)}")
    return values


def differences(config: ModelConfig, other: ModelConfig) -> list[str]:
    """Fields of ``config`` by which it is another function than ``other``, with their values."""
    ours, theirs = _essence(config), _essence(other)
    return [f"{key}={value!r}" for key, value in ours.items() if value != theirs[key]]


def _essence(config: ModelConfig) -> dict[str, Any]:
    """The fields, with one value for what has no effect."""
    defaults = _DEFAULTS.to_dict()
    without_effect = {*OF_TRAINING, *_unused(config)}
    values = {k: defaults[k] if k in without_effect else v for k, v in config.to_dict().items()}
    values["rotary_dim"] = config.rotary_dim or config.head_dim
    values["qkv_bias"] = config.has_qkv_bias
    return values


def _unused(config: ModelConfig) -> Iterator[str]:
    if config.traits.norms_per_layer == 2:
        yield "parallel_norms"
    if not config.traits.own_streams:
        yield "sum_scale"
    rope = ["rope_low_freq_factor", "rope_high_freq_factor", "rope_original_context"]
    if config.position == "learned":
        yield from (*rope, "rope_theta", "rope_stretch", "rope_factor")
    elif config.rope_stretch != "llama3":
        yield from rope


def _tokens(theirs: PreTrainedConfig, vocabulary: int) -> dict[str, Any]:
    """Without ids outside the vocabulary, as classes have by default."""
    tokens = {key: getattr(theirs, key, None) for key in TOKENS}
    return {
        key: value
        for key, value in tokens.items()
        if value is not None and all(token < vocabulary for token in _as_list(value))
    }


def _as_list(value: Any) -> list[int]:
    return value if isinstance(value, list) else [value]


def _filled_in(values: Mapping[str, Any]) -> PreTrainedConfig:
    """By the family's class, which knows what a key stands for where it is absent."""
    try:
        return AutoConfig.for_model(**copy.deepcopy(dict(values)))  # it changes tables within
    except Exception as error:  # validation of many kinds
        raise KrakenError(
            f"not a configuration that Transformers reads ({first_line(error)}): copy it again"
        ) from error
