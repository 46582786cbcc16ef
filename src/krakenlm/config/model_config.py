"""The configuration of one model: every field, its default, and what is refused.

This dataclass is the only list of the fields. ``KrakenConfig`` in ``krakenlm.integrations``
shows the same fields to Hugging Face by reading them from here.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from krakenlm.config.layer_ranges import format_layers, parse_layers
from krakenlm.config.wirings import WIRINGS, WiringName, WiringTraits
from krakenlm.errors import ConfigError
from krakenlm.strict import check_types, from_plain, refuse_near_misses

MODEL_TYPE = "kraken"
ARCHITECTURE = "KrakenForCausalLM"

DERIVED = ("num_attention_heads", "num_key_value_heads")
"""What other programs read of a configuration, and it computes from its fields."""

OF_TRAINING = ("dropout", "initializer_range", "output_init", "conjunction_init")
"""Fields that say how a model is trained; one that is trained computes the same without them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """Shape of a model. The defaults are the published 125M 2-way Kraken (arXiv 2408.07802).

    Attributes:
        wiring: which architecture (see ``krakenlm.config.wirings``).
        num_sublayers: N, the sub-layers of a Kraken layer. In most other wirings the branches a
            layer is stored in: N branches compute the same function as one branch with N times
            the heads and N times the feed-forward width.
        hidden_size: d, the width of a residual stream.
        num_hidden_layers: L.
        heads_per_sublayer: h, query heads of one sub-layer.
        kv_heads_per_sublayer: key and value heads of one sub-layer; 0 means as many as heads.
            Fewer is grouped-query attention, 1 is multi-query attention.
        head_dim: width of one head, free of ``hidden_size``; 0 means hidden_size / heads.
        ffn_dim: f, feed-forward width of one sub-layer; 0 means 2d for Kraken's sub-layers (the
            paper's f), in kraken-shared too, and 4d otherwise.
        vocab_size: rows of the embedding.
        max_position_embeddings: longest context.
        position: learned absolute embeddings, or rotary ones.
        rope_theta: base of the rotary frequencies.
        rotary_dim: channels of each head that rotary positions turn, the first ones; 0 means all.
        rope_stretch: how the frequencies are stretched for contexts longer than a model was first
            trained for: not at all, all by ``rope_factor`` (linear), or the low ones alone, as
            Llama 3.1 does it (arXiv 2407.21783, section 3.4.1). The fields after it are for that.
        rope_factor: by which frequencies are divided.
        rope_low_freq_factor: of llama3: wavelengths above ``rope_original_context`` divided by
            this are stretched whole.
        rope_high_freq_factor: of llama3: those below ``rope_original_context`` divided by this are
            left as they are; between the two the stretch fades in.
        rope_original_context: of llama3: the context that the model was first trained for.
        norm: LayerNorm or RMSNorm.
        norm_eps: added to the variance.
        parallel_norms: in parallel and lagged-layer, norms of a layer: 1, which attention and
            feed-forward share, or 2, as in GPT-NeoX. Without effect in the other wirings.
        qk_norm: RMSNorm on each head's queries and keys, before their positions (Qwen3).
        activation: GELU in its tanh form, as GPT-2 has it, or exact, or SwiGLU, which has three
            matrices.
        bias: biases in the linear maps and LayerNorms.
        qkv_bias: biases of queries, keys and values where there are no others (Qwen2).
        dropout: on embeddings, attention weights and both branch outputs, in training.
        tie_word_embeddings: the output head is the embedding.
        initializer_range: standard deviation of the initial weights.
        output_init: the streams among which the initial scale of branch outputs is divided:
            ``all-streams`` is the authors' initializer_range / sqrt(2 L N), ``own-stream`` leaves
            N out. They differ for Kraken's sub-layers only, those of kraken-shared among them.
        conjunction_init: Kraken's conjunction starts as other weights do, or as the mean of the
            streams, identity / N. Without effect where there is none.
        sum_scale: Kraken's sums over streams are multiplied by it. The paper's S is a plain sum;
            with 1/N it is a mean. Without effect where there is one stream. docs/parity.md says
            what this and the two options before do.
        message_parts: in shared and kraken-shared, the channels of the stream are summed in that
            many groups in turn: each layer's AllReduce carries hidden_size / message_parts of them.
        late_layers: in the wirings that hide a standard or parallel layer's sums (their
            ``awaited_as``), the layers that do, such as ``16-29``; the others await theirs at
            once, as that wiring does. Empty means all.

    Raises:
        ConfigError: an impossible value or combination; the message names the field, the value
            and what would fit.
    """

    wiring: WiringName = "kraken"
    num_sublayers: int = 2
    hidden_size: int = 678
    num_hidden_layers: int = 12
    heads_per_sublayer: int = 6
    kv_heads_per_sublayer: int = 0
    head_dim: int = 0
    ffn_dim: int = 0
    vocab_size: int = 50257
    max_position_embeddings: int = 1024
    position: Literal["learned", "rope"] = "learned"
    rope_theta: float = 10000.0
    rotary_dim: int = 0
    rope_stretch: Literal["none", "linear", "llama3"] = "none"
    rope_factor: float = 1.0
    rope_low_freq_factor: float = 1.0
    rope_high_freq_factor: float = 4.0
    rope_original_context: int = 0
    norm: Literal["layernorm", "rmsnorm"] = "layernorm"
    norm_eps: float = 1e-5
    parallel_norms: Literal[1, 2] = 1
    qk_norm: bool = False
    activation: Literal["gelu", "gelu-exact", "swiglu"] = "gelu"
    bias: bool = False
    qkv_bias: bool = False
    dropout: float = 0.0
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    output_init: Literal["all-streams", "own-stream"] = "all-streams"
    conjunction_init: Literal["normal", "mean"] = "normal"
    sum_scale: float = 1.0
    message_parts: int = 1
    late_layers: str = ""

    def __post_init__(self) -> None:
        check_types(self)
        self._check_counts()
        self._fill_derived()
        self._check_combinations()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Build from plain values, such as a recipe's table; unknown keys are refused."""
        return from_plain(cls, values)

    @classmethod
    def from_config_json(cls, values: Mapping[str, Any]) -> "ModelConfig":
        """Build from what stands in a ``config.json``, where Transformers adds keys of its own.

        Which ones is Transformers' affair and changes with its version, so that others than the
        fields are passed over, but for those that are spelt almost like one of them.

        Raises:
            ConfigError: also for a number of heads that the fields do not give.
        """
        fields = {field.name for field in dataclasses.fields(cls)}
        refuse_near_misses(values, fields)
        config = cls.from_dict({key: value for key, value in values.items() if key in fields})
        for name in DERIVED:
            found = getattr(config, name)
            if values.get(name, found) != found:
                raise ConfigError(
                    f"{name}={values[name]!r}: the other fields make it {found}: leave it out"
                )
        return config

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values, derived ones filled in."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def to_hf_dict(self) -> dict[str, Any]:
        """The contents of ``config.json``, which ``KrakenConfig.from_pretrained`` reads back."""
        return {"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], **self.to_dict()}

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with other values, checked like any configuration."""
        return ModelConfig.from_dict({**self.to_dict(), **changes})

    @property
    def traits(self) -> WiringTraits:
        """Structure that follows from the wiring."""
        return WIRINGS[self.wiring]

    @property
    def norm_sets(self) -> int:
        """Sets of norms and output biases in a layer."""
        return self.num_sublayers if self.traits.own_norms else 1

    @property
    def norms_per_layer(self) -> int:
        """2, or 1 where attention and feed-forward read the same normalised input."""
        return 2 if self.traits.norms_per_layer == 2 else self.parallel_norms

    @property
    def has_qkv_bias(self) -> bool:
        """Whether queries, keys and values have biases."""
        return self.bias or self.qkv_bias

    @property
    def late_layer_indices(self) -> tuple[int, ...]:
        """The layers that the wiring itself joins, in order."""
        if not self.late_layers:
            return tuple(range(self.num_hidden_layers))
        return parse_layers(self.late_layers, self.num_hidden_layers, "late_layers")

    @property
    def attention_width(self) -> int:
        """Query width over all sub-layers, N h head_dim."""
        return self.num_sublayers * self.heads_per_sublayer * self.head_dim

    @property
    def num_attention_heads(self) -> int:
        """Query heads of a layer over all sub-layers."""
        return self.num_sublayers * self.heads_per_sublayer

    @property
    def num_key_value_heads(self) -> int:
        """Key and value heads of a layer over all sub-layers."""
        return self.num_sublayers * self.kv_heads_per_sublayer

    def _check_counts(self) -> None:
        for name in (
            "num_sublayers",
            "hidden_size",
            "num_hidden_layers",
            "heads_per_sublayer",
            "vocab_size",
            "max_position_embeddings",
            "message_parts",
        ):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)}: needs 1 or more")
        for name in (
            "kv_heads_per_sublayer",
            "head_dim",
            "ffn_dim",
            "rotary_dim",
            "rope_original_context",
        ):
            if getattr(self, name) < 0:
                raise ConfigError(
                    f"{name}={getattr(self, name)}: needs 1 or more, or 0 for the default"
                )
        if not 0.0 <= self.dropout < 1.0:
            raise ConfigError(f"dropout={self.dropout}: needs 0 or more and less than 1")
        for name in (
            "norm_eps",
            "rope_theta",
            "rope_factor",
            "rope_low_freq_factor",
            "rope_high_freq_factor",
            "initializer_range",
            "sum_scale",
        ):
            if not 0.0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{name}={getattr(self, name)}: needs a positive number")

    def _fill_derived(self) -> None:
        heads = self.heads_per_sublayer
        if self.head_dim == 0:
            if self.hidden_size % heads:
                raise ConfigError(
                    f"hidden_size={self.hidden_size} is not a multiple of heads_per_sublayer="
                    f"{heads}: use {_multiples(heads, self.hidden_size)}, or set head_dim"
                )
            object.__setattr__(self, "head_dim", self.hidden_size // heads)
        if self.kv_heads_per_sublayer == 0:
            object.__setattr__(self, "kv_heads_per_sublayer", heads)
        if self.ffn_dim == 0:
            expansion = 2 if self.traits.own_norms else 4
            object.__setattr__(self, "ffn_dim", expansion * self.hidden_size)

    def _check_combinations(self) -> None:
        heads, kv_heads = self.heads_per_sublayer, self.kv_heads_per_sublayer
        if heads % kv_heads:
            fits = ", ".join(str(n) for n in range(1, heads + 1) if heads % n == 0)
            raise ConfigError(
                f"kv_heads_per_sublayer={kv_heads} does not divide heads_per_sublayer={heads}: "
                f"use one of {fits}"
            )
        self._check_positions()
        self._check_message_parts()
        self._check_late_layers()

    def _check_positions(self) -> None:
        if self.rotary_dim > self.head_dim:
            raise ConfigError(
                f"rotary_dim={self.rotary_dim} is more than head_dim={self.head_dim}: use that at "
                "most, or 0 for all"
            )
        turned = "rotary_dim" if self.rotary_dim else "head_dim"
        width = self.rotary_dim or self.head_dim
        if self.position == "rope" and width % 2:
            raise ConfigError(
                f"{turned}={width} is odd and position='rope' turns pairs: use "
                f"{turned}={width + 1} or position='learned'"
            )
        if self.rope_stretch == "none" and self.rope_factor != 1.0:
            raise ConfigError(
                f"rope_factor={self.rope_factor}: rope_stretch='none' divides by nothing: leave it "
                "out, or use rope_stretch 'linear' or 'llama3'"
            )
        if self.rope_stretch == "llama3":
            self._check_llama3()

    def _check_llama3(self) -> None:
        if self.rope_original_context == 0:
            raise ConfigError("rope_stretch='llama3' needs rope_original_context")
        low, high = self.rope_low_freq_factor, self.rope_high_freq_factor
        if low >= high:
            raise ConfigError(
                f"rope_low_freq_factor={low} must be less than rope_high_freq_factor={high}"
            )

    def _check_message_parts(self) -> None:
        parts = self.message_parts
        if parts > 1 and not self.traits.parted_messages:
            able = " or ".join(name for name, traits in WIRINGS.items() if traits.parted_messages)
            raise ConfigError(
                f"message_parts={parts}: each AllReduce of a {self.wiring} model carries all "
                f"channels: leave it out, or use wiring {able}"
            )
        if self.hidden_size % parts:
            raise ConfigError(
                f"hidden_size={self.hidden_size} is not a multiple of message_parts={parts}: use "
                f"{_multiples(parts, self.hidden_size)}, or another number of parts"
            )

    def _check_late_layers(self) -> None:
        if not self.late_layers:
            return
        if self.traits.awaited_as is None:
            able = [name for name, traits in WIRINGS.items() if traits.awaited_as is not None]
            raise ConfigError(
                f"late_layers={self.late_layers!r}: all layers of a {self.wiring} model are of one "
                f"kind: leave it out, or use wiring {', '.join(able)}"
            )
        layers = self.late_layer_indices
        is_all = len(layers) == self.num_hidden_layers
        object.__setattr__(self, "late_layers", "" if is_all else format_layers(layers))


def _multiples(step: int, about: int) -> str:
    """The positive multiples below and above a number, for a message."""
    low = about // step * step
    return f"{low} or {low + step}" if low else f"{step}"
