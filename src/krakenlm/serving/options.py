"""What a user chooses with ``--additional-config '{"krakenlm": {...}}'``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from krakenlm.ranks.failures import TIMEOUT_SECONDS, check_timeout
from krakenlm.strict import check_types, from_plain

KEY = "krakenlm"


@dataclass(frozen=True, kw_only=True)
class ServingOptions:
    """Options of krakenlm's models under vLLM.

    Attributes:
        overlap: ``async`` keeps sums over ranks in flight behind compute; ``sync`` uses vLLM's own
            AllReduce and waits for it; ``auto`` is ``async`` where the wiring has something to
            hide sums behind.
        transport: what carries ``async`` sums between CPUs; ``auto`` is shared memory within a
            host and sockets between hosts. GPUs exchange through NCCL.
        sublayers: N of a model for which it is a choice (see ``krakenlm.config.with_sublayers``);
            by default that of its checkpoint.
        timeout: seconds without a sign of life after which a rank is lost and the engine ends; 0
            leaves that to vLLM.

    Raises:
        ConfigError: an unknown option or value.
    """

    overlap: Literal["auto", "async", "sync"] = "auto"
    transport: Literal["auto", "shared-memory", "sockets", "process-group"] = "auto"
    sublayers: int | None = None
    timeout: float = TIMEOUT_SECONDS

    def __post_init__(self) -> None:
        check_types(self)
        check_timeout(self.timeout)

    @classmethod
    def from_additional_config(cls, additional: Any) -> "ServingOptions":
        """Read the table; without one, all is at its default."""
        table = additional.get(KEY, {}) if isinstance(additional, Mapping) else {}
        return from_plain(cls, table, f"--additional-config {KEY}")
