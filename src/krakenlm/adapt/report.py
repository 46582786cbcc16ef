"""What ``adapt.json`` says: the original, the rewired and the adapted model side by side."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

from krakenlm.bench.results import LatencyReport
from krakenlm.environment import Environment
from krakenlm.eval.report import EvalReport

Stage = Literal["original", "rewired", "adapted"]
STAGES: tuple[Stage, ...] = ("original", "rewired", "adapted")
"""The model before; with late layers and the same weights; trained."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AdaptReport:
    """The file.

    Attributes:
        command: what was typed.
        model: folder of the original.
        wiring: of the adapted model.
        sublayers: the N that it was trained with; several where they were drawn.
        late_layers: of the adapted model, as its configuration has them; empty for all.
        num_hidden_layers: L.
        difference_as_laid_out: see ``krakenlm.adapt.probe.Probe.check_equal``.
        zero_shot: perplexities before training, by the layers that were late; empty where the
            layers were named.
        tokens: that it was adapted on.
        seconds: of that.
        perplexity: of each stage, by prepared folder.
        by_sublayers: where N was drawn, of the adapted model with each, on the first folder.
        superglue: zero-shot scores of each stage, where they were asked for.
        latency: of the original and the adapted model, over each link that was asked for.
        environment: where.
    """

    command: tuple[str, ...]
    model: str
    wiring: str
    sublayers: tuple[int, ...]
    late_layers: str
    num_hidden_layers: int
    difference_as_laid_out: float
    zero_shot: dict[str, float]
    tokens: int
    seconds: float
    perplexity: dict[str, dict[Stage, float]]
    by_sublayers: dict[str, float]
    superglue: dict[Stage, EvalReport]
    latency: tuple[LatencyReport, ...]
    environment: Environment

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)
