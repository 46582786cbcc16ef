"""What of the models depends on Transformers' version or insides, in one place.

Training has the same in ``krakenlm.integrations.hf_trainer``. 5.24 calls a cache ``cache`` where
the versions before it say ``past_key_values``: what a model is given, what it hands to
Transformers' masks, and what ``generate`` reads from its output.
"""

import dataclasses
import difflib
import inspect
from collections.abc import Callable, Collection, Sequence
from typing import Any

import transformers
from torch import Tensor
from transformers import Cache, PreTrainedConfig, PreTrainedModel
from transformers.masking_utils import create_causal_mask
from transformers.modeling_flash_attention_utils import FlashAttentionKwargs
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import TransformersKwargs, can_return_tuple

from krakenlm.errors import ConfigError
from krakenlm.overrides import names_with_default

__all__ = [
    "CACHE_NAMES",
    "CausalLMOutputWithPast",
    "attention_function",
    "cache_of",
    "can_return_tuple",
    "causal_mask",
    "given_cache",
    "output_with_cache",
    "passed_on",
    "server",
]

# Of an output and of an argument. All versions allowed know one of the two, some both.
CACHE_NAMES = ("cache", "past_key_values")

AttentionFunction = Callable[..., tuple[Tensor, Any]]


def _own_name(names: Collection[str]) -> str:
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


def attention_function(
    config: PreTrainedConfig, eager: AttentionFunction
) -> tuple[str, AttentionFunction]:
    """The name of the attention that a configuration asks for, and its function.

    Args:
        config: of the model.
        eager: what runs as ``eager``.
    """
    name: str = config._attn_implementation
    return name, ALL_ATTENTION_FUNCTIONS.get_interface(name, eager)


# Keywords of Transformers' that ask these models for something else than they do, each with the
# values that do not.
_CHANGES_NOTHING: dict[str, tuple[bool | None, ...]] = {
    "output_hidden_states": (None, False),
    "output_attentions": (None, False),
    "output_router_logits": (None, False),
    "is_causal": (None, True),
    "seq_idx": (None,),
}
# What ``generate`` needs itself, and lets through to the model in all but its assisted mode.
_OF_GENERATE = frozenset({"tokenizer", "assistant_tokenizer"})
# What Transformers declares that attention and losses may be given. Flex attention's options are
# read from its ``**kwargs`` and declared nowhere.
_DECLARED = (
    frozenset(TransformersKwargs.__annotations__)
    | frozenset(FlashAttentionKwargs.__annotations__)
    | {"kernel_options"}
) - _CHANGES_NOTHING.keys()
_DROPPED = frozenset(_CHANGES_NOTHING) | _OF_GENERATE


def passed_on(model: PreTrainedModel, keywords: dict[str, Any]) -> dict[str, Any]:
    """What of a model's further keywords goes to its attention and its loss function.

    Both take any keyword and ignore what they do not know, so that a misspelt or renamed one would
    change nothing without a word.

    Raises:
        ConfigError: what these models do not return or do.
        TypeError: neither function knows such a keyword.
    """
    config = model.config
    asked = {
        "output_hidden_states": config.output_hidden_states,
        "output_attentions": config.output_attentions,
        **keywords,
    }
    for name, harmless in _CHANGES_NOTHING.items():
        if name in asked and asked[name] not in harmless:
            raise ConfigError(
                f"{name}={asked[name]}: these models are causal, and return logits and caches only"
            )
    rest = {name: value for name, value in keywords.items() if name not in _DROPPED}
    if not rest.keys() <= _DECLARED:
        _refuse_unknown(model, rest)
    return rest


def _refuse_unknown(model: PreTrainedModel, keywords: dict[str, Any]) -> None:
    """Look closer: losses and attention functions may be a user's own."""
    known = _DECLARED | names_with_default(model.loss_function)
    name = model.config._attn_implementation
    if name != "eager":
        known |= names_with_default(ALL_ATTENTION_FUNCTIONS[name])
    for keyword in keywords:
        if keyword not in known:
            own = {*inspect.signature(model.forward).parameters, *known}
            near = difflib.get_close_matches(keyword, sorted(own), 1)
            hint = f": did you mean {near[0]!r}?" if near else ""
            raise TypeError(
                f"{type(model).__name__}.forward() got an unknown keyword {keyword!r}{hint}"
            )


def server(name: str, model_class: type[PreTrainedModel]) -> Callable[[Sequence[str]], None] | None:
    """What runs ``transformers serve`` with a class of ours; None where it is not installed.

    Args:
        name: of the class, as checkpoints spell it.
        model_class: that has it.
    """
    from transformers.utils.import_utils import is_serve_available

    if not is_serve_available():
        return None
    from transformers.cli.transformers import app

    # The server looks for the class that a checkpoint names in this module, and nowhere else.
    setattr(transformers, name, model_class)

    def run(arguments: Sequence[str]) -> None:
        app(["serve", *arguments], prog_name="krakenlm hf-serve", standalone_mode=False)

    return run
