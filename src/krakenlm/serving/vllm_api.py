"""All of krakenlm that depends on the version of vLLM.

It was written and tested for vLLM 0.32. Names that other versions may have moved, and calls that
they may have changed, stand here and nowhere else.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from krakenlm.errors import KrakenError
from krakenlm.transport.collective import Group

TESTED = (0, 32)


def check_version(found: str) -> None:
    """Refuse a vLLM that nobody has tested with krakenlm.

    Raises:
        KrakenError: another minor version.
    """
    numbers = tuple(int(part) for part in found.split("+")[0].split(".")[:2] if part.isdigit())
    if numbers != TESTED:
        wanted = ".".join(map(str, TESTED))
        raise KrakenError(
            f"vLLM {found}: krakenlm serves its models with vLLM {wanted}: "
            f'pip install "vllm=={wanted}.*"'
        )


def _installed_version() -> str:
    import vllm

    return vllm.__version__


check_version(_installed_version())

from vllm.compilation.decorators import support_torch_compile  # noqa: E402
from vllm.config import VllmConfig, get_current_vllm_config  # noqa: E402
from vllm.distributed.parallel_state import get_tp_group  # noqa: E402
from vllm.logger import init_logger  # noqa: E402
from vllm.model_executor.layers.attention import Attention  # noqa: E402
from vllm.model_executor.layers.logits_processor import LogitsProcessor  # noqa: E402
from vllm.model_executor.layers.vocab_parallel_embedding import (  # noqa: E402
    ParallelLMHead,
    VocabParallelEmbedding,
)
from vllm.platforms import current_platform  # noqa: E402

__all__ = [
    "LogitsProcessor",
    "VllmConfig",
    "all_reduce",
    "check_version",
    "computes_in",
    "init_logger",
    "paged_attention",
    "parallel_embedding",
    "parallel_head",
    "rank_and_ranks",
    "run_between_graphs",
    "shut_down",
    "support_torch_compile",
    "tensor_parallel_cpu_group",
    "tensor_parallel_group",
    "vocabulary_rows",
]


def rank_and_ranks() -> tuple[int, int]:
    """This process's place in the tensor-parallel group, and the group's size."""
    group = get_tp_group()
    return group.rank_in_group, group.world_size


def tensor_parallel_group() -> Group:
    """The tensor-parallel ranks, with their process group for tensors on their device."""
    group = get_tp_group()
    return Group(group.rank_in_group, group.world_size, group.device_group)


def tensor_parallel_cpu_group() -> Group:
    """The same ranks, with their process group for what they tell each other."""
    group = get_tp_group()
    return Group(group.rank_in_group, group.world_size, group.cpu_group)


def all_reduce(x: Tensor) -> Tensor:
    """vLLM's own AllReduce over the tensor-parallel ranks; on CPUs it overwrites ``x``."""
    return get_tp_group().device_communicator.all_reduce(x)


def device() -> torch.device:
    """Where this process computes."""
    return torch.device(current_platform.device_type)


def parallel_embedding(vocabulary: int, width: int, prefix: str) -> nn.Module:
    """An embedding of which each rank holds some rows; ids in, the sum over ranks out."""
    return VocabParallelEmbedding(
        vocabulary, width, padding_size=_padding(), prefix=f"{prefix}.embed_tokens"
    )


def parallel_head(vocabulary: int, width: int, prefix: str) -> nn.Module:
    """An output head of which each rank holds the rows that it holds of an embedding."""
    return ParallelLMHead(vocabulary, width, padding_size=_padding(), prefix=f"{prefix}.lm_head")


def vocabulary_rows(embedding: nn.Module) -> range:
    """Tokens whose rows this rank holds of an embedding or head; padding follows them."""
    indices: Any = embedding.shard_indices
    return range(indices.org_vocab_start_index, indices.org_vocab_end_index)


def _padding() -> int:
    """vLLM pads vocabularies to a multiple of 64, which each number of ranks has to divide."""
    return math.lcm(64, get_tp_group().world_size)


def paged_attention(
    config: VllmConfig, *, heads: int, kv_heads: int, head_dim: int, scaling: float, prefix: str
) -> nn.Module:
    """Attention of one layer over vLLM's paged cache.

    It takes queries, keys and values of [T, heads * width], where width is ``head_dim`` rounded up
    to ``cached_head_dim``.

    Args:
        config: vLLM's.
        heads: query heads of this rank.
        kv_heads: key and value heads of this rank.
        head_dim: width of one head in the model.
        scaling: of the scores.
        prefix: the layer's name; it holds exactly one number, the layer's.
    """
    return Attention(
        heads,
        cached_head_dim(head_dim),
        scaling,
        num_kv_heads=kv_heads,
        cache_config=config.cache_config,
        quant_config=None,
        prefix=prefix,
    )


def cached_head_dim(head_dim: int) -> int:
    """The head width, rounded up to one for which this platform has a kernel.

    Raises:
        KrakenError: there is none.
    """
    if not current_platform.is_cpu():
        return -(-head_dim // 8) * 8
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionBackend

    widths = CPUAttentionBackend.get_supported_head_sizes()
    if head_dim > max(widths):
        raise KrakenError(
            f"head_dim={head_dim}: vLLM's attention on CPUs is made for {max(widths)} at most"
        )
    return min(width for width in widths if width >= head_dim)


def run_between_graphs(operators: tuple[str, ...]) -> None:
    """Have operators run between pieces of a graph rather than within one.

    vLLM's piecewise CUDA graphs are cut at attention, which leaves the two ends of an overlapped
    sum in different pieces.
    """
    splitting = get_current_vllm_config().compilation_config.splitting_ops
    if splitting:
        splitting.extend(name for name in operators if name not in splitting)


def computes_in(llm: Any) -> torch.dtype:
    """The number format of a ``vllm.LLM``."""
    dtype: torch.dtype = llm.llm_engine.model_config.dtype
    return dtype


def shut_down(llm: Any) -> None:
    """End the processes of a ``vllm.LLM``."""
    llm.llm_engine.engine_core.shutdown()
