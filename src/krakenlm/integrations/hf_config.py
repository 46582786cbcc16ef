"""Hugging Face Transformers: the configuration class."""

import dataclasses
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from krakenlm.config import DERIVED, MODEL_TYPE, ModelConfig

_MODEL_FIELDS = tuple(field.name for field in dataclasses.fields(ModelConfig))


class KrakenConfig(PreTrainedConfig):  # type: ignore[misc]
    """The fields of ``krakenlm.ModelConfig``, as Transformers keeps configurations.

    All fields, their defaults and what is refused are ``ModelConfig``'s. Other keys are kept as
    Transformers keeps them, see ``ModelConfig.from_config_json``.

    Raises:
        ConfigError: an impossible value or combination, or a key that is almost a field.
    """

    model_type = MODEL_TYPE
    keys_to_ignore_at_inference = ["cache", "past_key_values"]  # noqa: RUF012  Transformers adds a list

    use_cache: bool = True
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        model = ModelConfig.from_config_json(kwargs)
        for name, value in model.to_dict().items():
            setattr(self, name, value)
        own = {*_MODEL_FIELDS, *DERIVED}
        super().__post_init__(**{key: kwargs[key] for key in kwargs if key not in own})

    @classmethod
    def from_model_config(cls, config: ModelConfig, **extra: Any) -> "KrakenConfig":
        """The same model with Transformers' own keys, such as ``eos_token_id``, beside it."""
        return cls(**config.to_dict(), **extra)

    def to_model_config(self) -> ModelConfig:
        """The frozen configuration that the modules are built from."""
        return ModelConfig.from_dict({name: getattr(self, name) for name in _MODEL_FIELDS})

    @property
    def num_attention_heads(self) -> int:
        """Query heads over all sub-layers."""
        return self.to_model_config().num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads over all sub-layers."""
        return self.to_model_config().num_key_value_heads

    # Rotary positions are this package's own, with ``rope_theta`` as their base. vLLM has these two
    # look at every configuration with that field, and they refuse heads of odd width, which a
    # published Kraken has, even where positions are learned.

    def standardize_rope_params(self) -> None:
        """Nothing to translate; ``ModelConfig`` knows one kind of rotary positions."""

    def validate_rope(self, *_: Any, **__: Any) -> None:
        """Nothing to add; ``ModelConfig`` refuses what cannot be rotated."""


# Seen by whoever imports this module; krakenlm._registration imports it behind the Auto classes.
AutoConfig.register(MODEL_TYPE, KrakenConfig, exist_ok=True)
