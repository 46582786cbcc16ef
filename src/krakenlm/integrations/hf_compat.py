"""What depends on Transformers' version or insides, in one place.

5.24 calls a cache ``cache`` where the versions before it say ``past_key_values``: what a model is
given, what it hands to Transformers' masks, and what ``generate`` reads from its output.
"""

import dataclasses
import inspect
from typing import Any

from torch import Tensor
from transformers import Cache, PreTrainedConfig
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import CausalLMOutputWithPast

# Of an output and of an argument. All versions allowed know one of the two, some both.
CACHE_NAMES = ("cache", "past_key_values")


def _own_name(names: Any) -> str:
    """The word that this version uses for a cache where these names are known."""
    return next(name for name in CACHE_NAMES if name in names)


_CACHE_FIELD = _own_name({field.name for field in dataclasses.fields(CausalLMOutputWithPast)})
_MASK_ARGUMENT = _own_name(inspect.signature(create_causal_mask).parameters)


def given_cache(cache: Cache | None, past_key_values: Cache | None) -> Cache | None:
    """The cache that a model was called with, whichever word was used.

    Raises:
        ValueError: both were, for different caches.
    """
    if cache is None:
        return past_key_values
    if past_key_values is not None and past_key_values is not cache:
        raise ValueError("cache and past_key_values are two words for one thing: give one of them")
    return cache


def causal_mask(
    config: PreTrainedConfig,
    x_BTD: Tensor,
    attention_mask: Tensor | None,
    position_ids: Tensor,
    cache: Cache | None,
) -> Any:
    """The mask in the form that the configuration's attention function takes, or None."""
    return create_causal_mask(
        config=config,
        inputs_embeds=x_BTD,
        attention_mask=attention_mask,
        position_ids=position_ids,
        **{_MASK_ARGUMENT: cache},
    )


def output_with_cache(
    loss: Tensor | None, logits: Tensor, cache: Cache | None
) -> CausalLMOutputWithPast:
    """A model's output with its cache where this version's ``generate`` looks for it."""
    return CausalLMOutputWithPast(loss=loss, logits=logits, **{_CACHE_FIELD: cache})


def cache_of(output: CausalLMOutputWithPast) -> Cache | None:
    """The cache that a model returned."""
    return getattr(output, _CACHE_FIELD)
