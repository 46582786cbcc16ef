"""What does a run's ``history.json`` say? Losses over steps, sizes, speed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from krakenlm.strict import read_if_there
from krakenlm.train.degrees import Degrees


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """A loss in nats per token.

    Attributes:
        step: behind which it was taken.
        loss: of training, the mean since the value before; of validation, over its batches.
    """

    step: int
    loss: float


@dataclass(frozen=True, kw_only=True, slots=True)
class History:
    """A run so far.

    Attributes:
        tokens_per_step: of all processes together.
        parameters: of the model.
        training: in order of steps.
        validation: in order of steps, of the model's own N.
        validation_by_sublayers: where N was drawn, the same of each N; empty elsewhere.
        speed: ``seconds`` of training over all sessions; of the latest session
            ``tokens_per_second``, ``mfu`` (0 to 1) where the device's peak is known and
            ``seconds_left``; ``flops_per_token``. The only entries that depend on the machine.
    """

    tokens_per_step: int
    parameters: int
    training: tuple[Loss, ...]
    validation: tuple[Loss, ...]
    validation_by_sublayers: dict[str, tuple[Loss, ...]] = field(default_factory=dict)
    speed: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of_log(
        cls,
        log: Sequence[Mapping[str, Any]],
        degrees: Degrees,
        *,
        tokens_per_step: int,
        parameters: int,
        speed: dict[str, float],
    ) -> "History":
        """From the entries that Trainer keeps."""
        found = {n: _losses(log, f"{degrees.evaluation(n)}_loss") for n in degrees.drawn_from}
        return cls(
            tokens_per_step=tokens_per_step,
            parameters=parameters,
            training=_losses(log, "loss"),
            validation=found[degrees.own],
            validation_by_sublayers=(
                {str(n): losses for n, losses in found.items()} if degrees.others else {}
            ),
            speed=speed,
        )

    def validation_log(self, degrees: Degrees) -> list[dict[str, Any]]:
        """The validation losses as entries that Trainer keeps."""
        of_each = {n: self.validation_by_sublayers.get(str(n), ()) for n in degrees.others}
        return [
            {"step": entry.step, f"{degrees.evaluation(n)}_loss": entry.loss}
            for n, entries in {**of_each, degrees.own: self.validation}.items()
            for entry in entries
        ]

    @classmethod
    def load(cls, path: Path) -> "History | None":
        """Read the file; None where there is none yet.

        Raises:
            KrakenError: it is not what training writes.
        """
        return read_if_there(cls, path, "train again, or remove it")

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    @property
    def losses(self) -> tuple[tuple[Loss, ...], tuple[Loss, ...]]:
        """Of training and of validation."""
        return self.training, self.validation

    @property
    def step(self) -> int:
        """The last step of which a loss is known; 0 before."""
        return max((entry.step for entry in (*self.training, *self.validation)), default=0)


def _losses(log: Sequence[Mapping[str, Any]], name: str) -> tuple[Loss, ...]:
    return tuple(Loss(step=entry["step"], loss=entry[name]) for entry in log if name in entry)
