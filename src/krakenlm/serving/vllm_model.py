"""krakenlm's models as vLLM runs them: one rank's part, with paged attention.

The decoder is the package's own, with its wirings and layers, built for one rank's part of the
configuration. vLLM's are the attention with its cache, the embedding and the head, of which each
rank holds some rows, and the sums over ranks. Shape letters: see ``krakenlm.model``.
"""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from krakenlm.config import ModelConfig, allreduces, hidden_allreduces, with_sublayers
from krakenlm.model.attention import Attention
from krakenlm.model.checkpoint import stream_shard
from krakenlm.model.decoder import Decoder
from krakenlm.model.reduce import LocalReducer
from krakenlm.serving import vllm_api as api
from krakenlm.serving.options import ServingOptions
from krakenlm.serving.overlap import (
    OPERATORS,
    BlockingCarrier,
    OrderedReducer,
    asynchronous_carriers,
    enlist,
)
from krakenlm.serving.parts import own_shard
from krakenlm.serving.signs import give_signs_of_life

logger = api.init_logger("vllm.krakenlm")


@api.support_torch_compile
class RankDecoder(nn.Module):
    """One rank's part of the decoder: token ids to the hidden states that the head reads."""

    def __init__(self, *, vllm_config: api.VllmConfig, prefix: str = "") -> None:
        super().__init__()
        options = ServingOptions.from_additional_config(vllm_config.additional_config)
        stored = vllm_config.model_config.hf_config.to_model_config()
        rank, ranks = api.rank_and_ranks()
        self.shard = own_shard(with_sublayers(stored, options.sublayers), rank, ranks)
        config = self.shard.config
        local = self.shard.local_config
        self.decoder = Decoder(
            local, api.parallel_embedding(config.vocab_size, config.hidden_size, prefix)
        )
        self.attentions = nn.ModuleList(
            api.paged_attention(
                vllm_config,
                heads=local.num_attention_heads,
                kv_heads=local.num_key_value_heads,
                head_dim=local.head_dim,
                scaling=local.head_dim**-0.5,
                prefix=f"{prefix}.layers.{index}.attention",
            )
            for index in range(config.num_hidden_layers)
        )
        self._slots = _slots(config, options) if ranks > 1 else None
        give_signs_of_life(api.tensor_parallel_cpu_group(), options.timeout, logger.error)

    def forward(
        self, input_ids: Tensor, positions: Tensor, inputs_embeds: Tensor | None = None
    ) -> Tensor:
        """Hidden states [T, D] of tokens [T] at positions [T], of any number of sequences."""
        x_TD = self.decoder.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        x_1TD, positions_1T = x_TD.unsqueeze(0), positions.unsqueeze(0)
        core = PagedCore(self.attentions)
        if self._slots is None:
            return self.decoder(x_1TD, positions_1T, core, LocalReducer()).squeeze(0)
        reducer = OrderedReducer(self._slots)
        return self.decoder(x_1TD, positions_1T, core, reducer, wrap=reducer.wrap).squeeze(0)


class PagedCore:
    """The attention core that stores in vLLM's paged cache; sequences follow one another in T.

    Heads whose width no kernel is made for are filled up with zeros, which change no score.
    """

    def __init__(self, attentions: nn.ModuleList) -> None:
        self._attentions = attentions

    def __call__(self, module: Attention, q_BHTE: Tensor, k_BGTE: Tensor, v_BGTE: Tensor) -> Tensor:
        """Attend; B is 1."""
        paged: Any = self._attentions[module.layer_index]
        width, tokens = paged.head_size, q_BHTE.shape[2]
        o_TI = paged(*(_side_by_side(x, width) for x in (q_BHTE, k_BGTE, v_BGTE)))
        return o_TI.view(1, tokens, -1, width)[..., : module.head_dim]


class KrakenForCausalLM(nn.Module):
    """A language model of any wiring under vLLM."""

    def __init__(self, *, vllm_config: api.VllmConfig, prefix: str = "") -> None:
        super().__init__()
        model_config = vllm_config.model_config
        config = model_config.hf_config.to_model_config()
        self._vllm_config = vllm_config
        self._tied = config.tie_word_embeddings
        self.model = RankDecoder(vllm_config=vllm_config, prefix=f"{prefix}.model".strip("."))
        self.lm_head: Any = api.parallel_head(config.vocab_size, config.hidden_size, prefix)
        if self._tied:
            head: Any = self.lm_head
            self.lm_head = head.tie_weights(self.model.decoder.embed_tokens)
        self.logits_processor = api.LogitsProcessor(config.vocab_size)

    def embed_input_ids(self, input_ids: Tensor) -> Tensor:
        """Embedded tokens [T, D], without positions."""
        return self.model.decoder.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: Tensor,
        positions: Tensor,
        intermediate_tensors: object = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [T, D]."""
        assert intermediate_tensors is None, "vLLM has pipelines only of models that say they can"
        return self.model(input_ids, positions, inputs_embeds)

    def compute_logits(self, hidden_states: Tensor) -> Tensor | None:
        """Logits, on the ranks that vLLM samples on."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Read this rank's part straight from the checkpoint.

        ``weights`` would read all of it, and is lazy: what is never asked for is never opened. It
        is also what vLLM times, so that the seconds in its own message mean nothing.
        """
        start = time.perf_counter()
        model_config = self._vllm_config.model_config
        directory = checkpoint_directory(self._vllm_config)
        loaded = set()
        rows = api.vocabulary_rows(self.model.decoder.embed_tokens)
        parameters = dict(self.model.decoder.named_parameters())
        for name, tensor in stream_shard(
            directory, self.model.shard, model_config.dtype, vocabulary=rows
        ):
            parameter = self.lm_head.weight if name == "lm_head.weight" else parameters[name]
            _fill(parameter, tensor)
            loaded.add(name if name == "lm_head.weight" else f"model.decoder.{name}")
        if self._tied:
            loaded.add("lm_head.weight")
        shard, seconds = self.model.shard, time.perf_counter() - start
        logger.info("rank %d of %d read its part in %.2f s", shard.rank, shard.ranks, seconds)
        return loaded


def checkpoint_directory(vllm_config: api.VllmConfig) -> Path:
    """The folder that holds the weights, fetched from the Hub where the model is named there."""
    model = Path(vllm_config.model_config.model)
    if model.is_dir():
        return model
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            vllm_config.model_config.model,
            revision=vllm_config.model_config.revision,
            cache_dir=vllm_config.load_config.download_dir,
            allow_patterns=["*.json", "*.safetensors"],
        )
    )


def _slots(config: ModelConfig, options: ServingOptions) -> range:
    """Make the carriers of a forward pass's sums; returns their slots."""
    count, hidden = allreduces(config), hidden_allreduces(config)
    overlap = options.overlap
    if overlap == "auto":
        overlap = "async" if hidden > 0 else "sync"
    if overlap == "sync":
        logger.info("%d sums over ranks in a forward pass, finished where they begin", count)
        return enlist([BlockingCarrier(api.all_reduce) for _ in range(count)])
    api.run_between_graphs(OPERATORS)
    carriers, name = asynchronous_carriers(
        api.tensor_parallel_group(), count, api.device(), options.transport
    )
    logger.info("%d sums over ranks in a forward pass, in flight by %s", count, name)
    return enlist(carriers)


def _side_by_side(x_BHTE: Tensor, width: int) -> Tensor:
    """Heads of one batch as [T, heads * width]."""
    x_THE = x_BHTE[0].transpose(0, 1)
    if x_THE.shape[-1] < width:
        x_THE = F.pad(x_THE, (0, width - x_THE.shape[-1]))
    return x_THE.reshape(x_THE.shape[0], -1)


@torch.no_grad()
def _fill(parameter: Tensor, tensor: Tensor) -> None:
    """Copy into a parameter, whose rows may be padded."""
    parameter[: len(tensor)].copy_(tensor)
    parameter[len(tensor) :].zero_()
