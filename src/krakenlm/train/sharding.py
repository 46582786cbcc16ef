"""FSDP of weights with a sub-layer axis: along which axis is each divided?

FSDP divides a tensor's first axis. Here that is the axis over sub-layers, which is too short: of a
standard model, with one, the first process would hold everything and the others room for as much.
So attention and feed-forward networks are divided along the first axis that all processes get an
equal share of, before accelerate sees them; embeddings and norms are left to it.
"""

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import Shard

from krakenlm.integrations import hf_trainer
from krakenlm.model.attention import Attention
from krakenlm.model.feed_forward import FeedForward

if TYPE_CHECKING:
    from accelerate import Accelerator


def divides_evenly(model: nn.Module, ranks: int) -> bool:
    """Whether every weight of a layer has an axis of equal shares."""
    return all(
        _even_axis(parameter, ranks) is not None
        for block in _blocks(model)
        for parameter in block.parameters()
    )


def fsdp_settings(model: nn.Module, ranks: int) -> dict[str, Any]:
    """Trainer's ``fsdp_config`` for a model of which ``shard_blocks`` divides the layers."""
    names = () if divides_evenly(model, ranks) else ("Attention", "FeedForward")
    return hf_trainer.fsdp_settings(names)


def shard_blocks(model: nn.Module, accelerator: "Accelerator") -> None:
    """Divide attention and feed-forward networks, where they divide evenly; twice is once."""
    ranks = accelerator.num_processes
    if not divides_evenly(model, ranks):
        return

    def placement(parameter: nn.Parameter) -> Shard:
        axis = _even_axis(parameter, ranks)
        assert axis is not None
        return Shard(axis)

    # Angles of rotary positions stay float32.
    policy = replace(hf_trainer.fsdp_precision(accelerator), cast_forward_inputs=False)
    # Their outputs are views, which is safe here: wirings add out of place.
    warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view tensor")
    for block in _blocks(model):
        if not isinstance(block, FSDPModule):
            fully_shard(
                block, reshard_after_forward=True, shard_placement_fn=placement, mp_policy=policy
            )


def _blocks(model: nn.Module) -> list[nn.Module]:
    return [module for module in model.modules() if isinstance(module, Attention | FeedForward)]


def _even_axis(parameter: nn.Parameter, ranks: int) -> int | None:
    """The first axis of which each process gets an equal share that is not empty."""
    axes = (axis for axis, size in enumerate(parameter.shape) if size % ranks == 0 and size)
    return next(axes, None)
