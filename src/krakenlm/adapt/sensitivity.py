"""Which layers mind being late? Each alone, zero-shot; and how many the model can bear."""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from krakenlm.adapt.probe import Probe
from krakenlm.config import format_layers, parse_layers
from krakenlm.errors import KrakenError
from krakenlm.files import write_json
from krakenlm.strict import read_if_there

_PERCENT = re.compile(r"(?:perplexity *)?\+?([0-9]{1,6}(?:\.[0-9]{1,4})?) *%")


@dataclass(frozen=True, kw_only=True, slots=True)
class Sensitivity:
    """Perplexities of one sample.

    Attributes:
        of: what was measured, as text: model, layout and sample.
        late: by the layers that were late, as ``late_layers`` of a configuration writes them; with
            none the key is empty.
    """

    of: str
    late: dict[str, float]

    def ranking(self, layers: int) -> list[int]:
        """All layers, those first that mind least by themselves; of equals the later one."""
        return sorted(range(layers), key=lambda layer: (self.late[str(layer)], -layer))


class Meter:
    """Measures what becomes of a model whose layers are late, and keeps it in a file.

    Args:
        probe: of the model.
        of: see ``Sensitivity``; what the file has of another is measured anew.
        file: keeps what is measured, at once.

    Raises:
        KrakenError: the file is damaged.
    """

    def __init__(self, probe: Probe, of: str, file: Path) -> None:
        self._probe = probe
        self._file = file
        found = read_if_there(Sensitivity, file, "remove it to measure again")
        self.found = found if found is not None and found.of == of else Sensitivity(of=of, late={})

    def perplexity(self, late: Sequence[int]) -> float:
        """With these layers late."""
        key = format_layers(late)
        if key not in self.found.late:
            late_too = {**self.found.late, key: self._probe.perplexity(late)}
            self.found = Sensitivity(of=self.found.of, late=late_too)
            write_json(self._file, asdict(self.found))
        return self.found.late[key]


@dataclass(frozen=True)
class Late:
    """How late layers are chosen; exactly one of the three is given, or none for all layers.

    Attributes:
        count: so many, those that mind least.
        layers: these.
        budget: as many, in the order of the ranking, as keep the zero-shot perplexity below the
            original's times 1 + this.
    """

    count: int | None = None
    layers: tuple[int, ...] | None = None
    budget: float | None = None

    @classmethod
    def parse(cls, late: str | None, budget: str | None, num_hidden_layers: int) -> "Late":
        """The options ``--late`` and ``--budget``.

        Raises:
            KrakenError: both, or something that is neither.
        """
        if late is not None and budget is not None:
            raise KrakenError("--late says which layers and --budget lets them be chosen: give one")
        if budget is not None:
            percent = _PERCENT.fullmatch(budget.strip())
            if not percent or float(percent[1]) == 0:
                raise KrakenError(f"--budget {budget!r}: give what perplexity may rise by: '+30%'")
            return cls(budget=float(percent[1]) / 100)
        if late in (None, "all"):
            return cls()
        if late.isascii() and late.isdigit() and len(late) < 7:
            count = int(late)
            if not 1 <= count <= num_hidden_layers:
                raise KrakenError(
                    f"--late {late}: the model has {num_hidden_layers} layers: give 1 to "
                    f"{num_hidden_layers}, or layers such as 8-{num_hidden_layers - 1}"
                )
            return cls(count=count)
        return cls(layers=parse_layers(late, num_hidden_layers, "--late"))

    @property
    def needs_ranking(self) -> bool:
        """Whether each layer has to be measured for it."""
        return self.count is not None or self.budget is not None

    def choose(
        self, ranking: Sequence[int], perplexity_of: Callable[[Sequence[int]], float]
    ) -> tuple[int, ...]:
        """The late layers, in order.

        Args:
            ranking: all layers, those first that mind least.
            perplexity_of: zero-shot, with some layers late.

        Raises:
            KrakenError: the budget is too small for a single layer.
        """
        if self.layers is not None:
            return self.layers
        if self.budget is None:
            return tuple(sorted(ranking if self.count is None else ranking[: self.count]))
        before = perplexity_of([])
        limit = before * (1 + self.budget)
        chosen: list[int] = []
        for layer in ranking:
            if perplexity_of([*chosen, layer]) > limit:
                break
            chosen.append(layer)
        if not chosen:
            raise KrakenError(
                f"--budget +{self.budget:.4g}: the layer that minds least, {ranking[0]}, already "
                f"takes the perplexity of {before:.4g} above {limit:.4g}: allow more"
            )
        return tuple(sorted(chosen))


def described(layers: Sequence[int]) -> str:
    """Layers for people."""
    return f"{len(layers)} late layers: {format_layers(layers)}"
