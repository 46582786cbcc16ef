"""Hugging Face Transformers: the model class.

The model is ``krakenlm.model.decoder.Decoder`` with all branches in one process, Transformers'
caches, masks and attention functions. Shape letters: see ``krakenlm.model``.
"""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    Cache,
    DynamicCache,
    GenerationConfig,
    GenerationMixin,
    PreTrainedModel,
)

from krakenlm.errors import ConfigError
from krakenlm.integrations.hf_compat import (
    CACHE_NAMES,
    CausalLMOutputWithPast,
    attention_function,
    can_return_tuple,
    causal_mask,
    given_cache,
    output_with_cache,
    passed_on,
)
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.integrations.rewiring import state_as
from krakenlm.model.attention import Attention
from krakenlm.model.block_attention import attend_in_blocks_with_gradient
from krakenlm.model.decoder import Decoder, initialise_module
from krakenlm.model.reduce import LocalReducer


class KrakenForCausalLM(PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """A language model of any wiring, for training and single-process generation."""

    config: KrakenConfig
    config_class = KrakenConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    # Layers are used through their attention and feed-forward network, which are what a
    # device map or FSDP may place.
    _no_split_modules = ("Attention", "FeedForward")
    _skip_keys_device_placement = CACHE_NAMES
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012

    def __init__(self, config: KrakenConfig) -> None:
        super().__init__(config)
        self.model = Decoder(config.to_model_config())
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        if config.tie_word_embeddings:
            # Trainer warns of what a checkpoint lacks, but for these.
            self._keys_to_ignore_on_save = {"lm_head.weight"}
        self.post_init()

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str] | None,
        *model_args: Any,
        config: Any = None,
        **kwargs: Any,
    ) -> Any:
        """As Transformers has it; a ``config`` of another N reads the same weights.

        That is for wirings where N is a choice, see ``krakenlm.config.with_sublayers``, and for
        local folders.
        """
        directory = Path(pretrained_model_name_or_path or "")
        state = None
        if isinstance(config, KrakenConfig) and (directory / "config.json").is_file():
            state = state_as(directory, config.to_model_config())
        if state is None:
            return super().from_pretrained(
                pretrained_model_name_or_path, *model_args, config=config, **kwargs
            )
        if (directory / "generation_config.json").is_file():
            kwargs.setdefault("generation_config", GenerationConfig.from_pretrained(directory))
        loaded = super().from_pretrained(
            None, *model_args, config=config, state_dict=state, **kwargs
        )
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model.config.name_or_path = model.name_or_path = str(directory)
        return loaded

    def get_input_embeddings(self) -> nn.Module:
        """The token embedding."""
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        """Replace the token embedding."""
        self.model.embed_tokens = value

    def get_output_embeddings(self) -> nn.Module:
        """The output head."""
        return self.lm_head

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replace the output head."""
        self.lm_head = new_embeddings

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        initialise_module(module, self.config.initializer_range)

    @can_return_tuple  # type: ignore[untyped-decorator]
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: Cache | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        past_key_values: Cache | None = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, and the loss where labels are given.

        Args:
            input_ids: [B, T]; or ``inputs_embeds``, [B, T, D].
            attention_mask: [B, past + T], 0 where a batch is padded (on the left for generation).
            position_ids: [B, T]; by default they count what the mask keeps.
            cache: a Transformers cache.
            inputs_embeds: embedded tokens, instead of ``input_ids``.
            labels: [B, T], the ids again; the shift happens inside, -100 is ignored.
            use_cache: return a cache; the configuration's ``use_cache`` by default.
            logits_to_keep: only so many last positions go through the head; 0 is all.
            past_key_values: the word for ``cache`` in Transformers before 5.24.
            kwargs: for Transformers' attention and loss functions.

        Raises:
            ConfigError: what these models do not return or do, or more tokens than fit.
            TypeError: a keyword that nobody knows.
            ValueError: arguments that contradict each other.
        """
        kwargs = passed_on(self, kwargs)
        cache = given_cache(cache, past_key_values)
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        x_BTD = self.model.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        self._check_length(x_BTD.shape[1], cache)
        if self._caches(use_cache) and cache is None:
            cache = DynamicCache(config=self.config)
        if position_ids is None:
            position_ids = _positions(x_BTD, attention_mask, cache)
        mask = causal_mask(self.config, x_BTD, attention_mask, position_ids, cache)
        core = _TransformersCore(self.config, mask, cache, kwargs)
        h_BTD = self.model(x_BTD, position_ids, core, LocalReducer())
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        logits = self.lm_head(h_BTD[:, kept, :])
        loss = None
        if labels is not None:
            loss = self.loss_function(
                logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs
            )
        return output_with_cache(loss, logits, cache)

    def _caches(self, use_cache: bool | None) -> bool:
        if self.training and self.model.gradient_checkpointing:
            return False  # recomputing a layer would store its keys twice
        return self.config.use_cache if use_cache is None else use_cache

    def _check_length(self, tokens: int, cache: Cache | None) -> None:
        past = 0
        if cache is not None and not torch.compiler.is_compiling():
            past = int(cache.get_seq_length())
        limit = self.config.max_position_embeddings
        if past + tokens > limit:
            raise ConfigError(
                f"{past + tokens} tokens do not fit the context of {limit} "
                "(max_position_embeddings): shorten the input or ask for fewer new tokens"
            )


class _TransformersCore:
    """The attention core that stores in a Transformers cache and calls its attention functions."""

    def __init__(
        self, config: KrakenConfig, mask: Any, cache: Cache | None, kwargs: dict[str, Any]
    ) -> None:
        name, self._attend = attention_function(config, eager_attention)
        self._plain = name == "sdpa" and mask is None
        self._mask = mask
        self._cache = cache
        self._kwargs = kwargs

    def __call__(self, module: Attention, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor) -> Tensor:
        if self._cache is not None:
            k_BGTE, v_BGTE = self._cache.update(k_BGTE, v_BGTE, module.layer_index)
        if self._suits_blocks(module, q_BHTE, k_BGTE):
            return attend_in_blocks_with_gradient(q_BHTE, k_BGTE, v_BGTE, module.scaling)
        o_BTHE, _ = self._attend(
            module,
            q_BHTE,
            k_BGTE,
            v_BGTE,
            self._mask,
            dropout=module.dropout if module.training else 0.0,
            scaling=module.scaling,
            **self._kwargs,
        )
        return o_BTHE

    def _suits_blocks(self, module: Attention, q_BHTE: Tensor, k_BGTE: Tensor) -> bool:
        """Whether this is what PyTorch's CPU kernels are slow at: nothing but causal, in bfloat16.

        In float32 blocks gain little, and with narrow heads they lose.
        """
        return (
            self._plain
            and q_BHTE.device.type == "cpu"
            and q_BHTE.dtype == torch.bfloat16
            and q_BHTE.shape[2] == k_BGTE.shape[2]
            and not (module.training and module.dropout)
            and not torch.compiler.is_compiling()
        )


def eager_attention(
    module: Attention,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention written out, for ``attn_implementation="eager"``: (o_BTHE, weights)."""
    key = key.repeat_interleave(module.num_key_value_groups, dim=1)
    value = value.repeat_interleave(module.num_key_value_groups, dim=1)
    scores = query @ key.transpose(-1, -2) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    precise = torch.promote_types(query.dtype, torch.float32)
    weights = scores.softmax(dim=-1, dtype=precise).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _positions(x_BTD: Tensor, attention_mask: Tensor | None, cache: Cache | None) -> Tensor:
    tokens = x_BTD.shape[1]
    if attention_mask is not None and attention_mask.dim() == 2:
        # Padding takes no position: the first real token of each row is at 0.
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens:]
    past = 0 if cache is None else cache.get_seq_length()
    return (torch.arange(tokens, device=x_BTD.device) + past).unsqueeze(0)


# Seen by whoever imports this module; krakenlm._registration imports it behind the Auto classes.
AutoModelForCausalLM.register(KrakenConfig, KrakenForCausalLM, exist_ok=True)
