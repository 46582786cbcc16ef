"""What a user chooses with ``--additional-config '{"krakenlm": {...}}'``."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

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

    Raises:
        ConfigError: an unknown option or value.
    """

    overlap: Literal["auto", "async", "sync"] = "auto"
    transport: Literal["auto", "shared-memory", "sockets", "process-group"] = "auto"
    sublayers: int | None = None

    def __post_init__(self) -> None:
        check_types(self)

    @classmethod
    def from_additional_config(cls, additional: Any) -> "ServingOptions":
        """Read the table; without one, all is at its default."""
        table = additional.get(KEY, {}) if isinstance(additional, Mapping) else {}
        return from_plain(cls, table, f"--additional-config {KEY}")
