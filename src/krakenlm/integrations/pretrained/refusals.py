"""What a ``config.json`` may say that no model here can be: refused by name.

Transformers' classes read some of these keys; of others they take no notice, and then they mean
that whoever made the model had other code in mind.
"""

import re
from collections.abc import Mapping
from typing import Any

from krakenlm.errors import KrakenError

# Each with the values that change nothing, and what another one stands for.
_CANNOT_BE: dict[str, tuple[tuple[Any, ...], str]] = {
    "quantization_config": ((None,), "quantised weights"),
    "add_cross_attention": ((None, False), "cross-attention"),
    "is_encoder_decoder": ((None, False), "an encoder"),
    "is_causal": ((None, True), "attention to later tokens"),
    "use_bidirectional_attention": ((None, False), "attention to later tokens"),
    "scale_attn_weights": ((None, True), "attention without its scale"),
    "scale_attn_by_inverse_layer_idx": ((None, False), "attention scaled by the layer"),
    "reorder_and_upcast_attn": ((None, False), "attention in another precision"),
    "pretraining_tp": ((None, 1), "products in slices"),
    "attention_chunk_size": ((None,), "attention within chunks"),
    "rope_interleaved": ((None, False), "rotary positions that turn neighbours"),
    "use_mrope": ((None, False), "positions of several kinds"),
    "no_rope_layers": ((None,), "layers without positions"),
    "no_rope_layer_interval": ((None,), "layers without positions"),
    "alibi": ((None, False), "ALiBi"),
    "clip_qkv": ((None,), "clipped queries and keys"),
    "use_qk_norm": ((None, False), "norms on queries and keys of this kind"),
    "logit_scale": ((None, 1, 1.0), "scaled logits"),
    "logits_scaling": ((None, 1, 1.0), "scaled logits"),
    "embedding_multiplier": ((None, 1, 1.0), "scaled embeddings"),
    "residual_multiplier": ((None, 1, 1.0), "scaled layers"),
    "attention_multiplier": ((None,), "attention scaled otherwise"),
    "query_pre_attn_scalar": ((None,), "attention scaled otherwise"),
}
_PATTERNS = {
    re.compile(r"expert|(^|_)moe(_|$)"): "experts",
    re.compile(r"soft_?cap"): "soft caps",
}
_NOTHING: tuple[Any, ...] = (None, False, 0, [], {}, "")
_SHOWN = 60


def refuse_what_cannot_be(values: Mapping[str, Any], context: int) -> None:
    """Go through all keys of a ``config.json``.

    Args:
        values: the keys, those that the family's class fills in too.
        context: of the model.

    Raises:
        KrakenError: the first one that asks for a function which cannot be represented.
    """
    for key, value in values.items():
        neutral, what = _CANNOT_BE.get(key, ((value,), ""))
        if value not in neutral:
            raise cannot_be(key, value, what)
        for pattern, of_these in _PATTERNS.items():
            if pattern.search(key) and value not in _NOTHING:
                raise cannot_be(key, value, of_these)
    _refuse_other_code(values)
    _refuse_windows(values, context)


def cannot_be(key: str, value: Any, what: str) -> KrakenError:
    """What to say of a key that asks for ``what``."""
    shown = repr(value)
    shown = shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}..."
    return KrakenError(f"{key}={shown}: {what} cannot be represented")


def _refuse_other_code(values: Mapping[str, Any]) -> None:
    own = values.get("auto_map") or {}
    for name in ("AutoModelForCausalLM", "AutoModel"):
        if name in own:
            raise KrakenError(
                f"auto_map names code of the model's own ({own[name]}), which is not run: if the "
                f"model is a plain {values['model_type']}, take auto_map out of its config.json"
            )


def _refuse_windows(values: Mapping[str, Any], context: int) -> None:
    kinds = set(values.get("layer_types") or ()) - {"full_attention"}
    for kind in sorted(kinds - {"sliding_attention"}):
        raise cannot_be("layer_types", kind, "layers of this kind")
    window = values.get("sliding_window")
    # A class that has kinds of layers says by them which ones the window is for.
    in_use = bool(kinds) if values.get("layer_types") else window is not None
    if in_use and (window is None or window < context):
        raise KrakenError(
            f"sliding_window={window} is in use, and attention within a window cannot be "
            f"represented: where {window} tokens are enough, set max_position_embeddings={context} "
            f"in config.json to {window}"
        )
