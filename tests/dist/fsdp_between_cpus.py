"""``krakenlm`` with FSDP between CPUs, which torch does and accelerate passes over.

Tests start this file in place of the command: how weights with a sub-layer axis are divided, saved
and read again is the same as between GPUs, of which they have none.
"""

from accelerate import PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from transformers import Trainer

from krakenlm.cli.main import main
from krakenlm.train import trainer

_create = Trainer.create_accelerator_and_postprocess


def _create_with_fsdp(self: Trainer) -> None:
    """Give accelerate the plugin that it makes on GPUs only."""
    _create(self)
    if not self.args.fsdp:
        return
    assert not self.is_fsdp_enabled, "accelerate divides between CPUs by itself: this can go"
    plugin = FullyShardedDataParallelPlugin(**self.args.fsdp_plugin_args)
    if self.accelerator.mixed_precision != "no":
        plugin.set_mixed_precision(self.accelerator.mixed_precision)
    self.accelerator.state.fsdp_plugin = plugin
    self.accelerator.state.distributed_type = DistributedType.FSDP
    PartialState._shared_state["distributed_type"] = DistributedType.FSDP
    self.is_fsdp_enabled = True


if __name__ == "__main__":
    Trainer.create_accelerator_and_postprocess = _create_with_fsdp
    trainer.check_sharding = lambda *_, **__: None
    main()
