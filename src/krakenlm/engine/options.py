"""How a model is spread out and run."""

from dataclasses import dataclass

from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError
from krakenlm.model.shard import Shard, split
from krakenlm.ranks.placement import Placement
from krakenlm.transport.connect import TRANSPORTS, Transport
from krakenlm.transport.links import LinkModel


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """How a model is spread out and run; the defaults suit the machine at hand.

    Attributes:
        sublayers: N of a model for which it is a choice (see ``krakenlm.config.with_sublayers``);
            None is that of its checkpoint.
        placement: units of each group of ranks, ``auto`` to measure the ranks and balance them,
            or None for as even as possible (see ``krakenlm.model.shard.split``).
        tensor_parallel: ranks that share each Kraken sub-layer.
        transport: what carries messages (see ``krakenlm.transport.connect``).
        link: emulate this link; None uses what is there.
        emulated_ranks: run one part of so many alone, as if the ranks with the others were there
            and never late; the numbers are wrong, the times those of the emulated link.
        prefill_chunks: parts of a prompt that hide their AllReduces behind one another.
        capture: replay decode passes instead of running them anew.
        graph_prefill: replay the last prompts' pass too, where new ones are as long.
        pack: linear maps in oneDNN's layout, on CPUs that have it.
    """

    sublayers: int | None = None
    placement: Placement = None
    tensor_parallel: int = 1
    transport: Transport = "auto"
    link: LinkModel | None = None
    emulated_ranks: int | None = None
    prefill_chunks: int = 1
    capture: bool = True
    graph_prefill: bool = False
    pack: bool = True

    def __post_init__(self) -> None:
        if self.prefill_chunks < 1:
            raise KrakenError(f"--prefill-chunks {self.prefill_chunks}: needs 1 or more")
        if self.transport not in TRANSPORTS:
            raise KrakenError(
                f"--transport {self.transport}: choose one of {', '.join(TRANSPORTS)}"
            )
        if self.emulated_ranks is not None:
            if self.link is None:
                raise KrakenError("--emulate-peers: needs a link to them: add --link gbps=RATE")
            if self.transport != "auto":
                raise KrakenError(
                    f"--transport {self.transport}: with --emulate-peers nothing is carried"
                )
            if self.placement == "auto":
                raise KrakenError("--emulate-peers: nobody to measure for --placement auto")

    def shards(self, config: ModelConfig, ranks: int) -> list[Shard]:
        """Each rank's part of a model, where they need not be measured for it.

        Raises:
            KrakenError: the model cannot be divided so.
        """
        assert self.placement != "auto", "ranks have to be measured first"
        return split(config, ranks, placement=self.placement, tensor_parallel=self.tensor_parallel)
