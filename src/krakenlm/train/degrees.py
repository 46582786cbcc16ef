"""With which N does each step of a run learn, and with which is the run evaluated?

A recipe may draw N for each step, or for each after so many, where it is a choice when a model is
loaded. What is drawn follows from the seed and the step alone: it is the same on every process, for
all forward passes of a step, and after an interruption.
"""

import hashlib
from dataclasses import dataclass

from krakenlm.train.recipe import Recipe


@dataclass(frozen=True)
class Degrees:
    """The N of a run's steps and evaluations.

    Attributes:
        drawn_from: what each step draws from; the model's own N alone where nothing is drawn.
        own: the model's own N, of which Trainer's ``eval_loss`` is.
        seed: of the draws.
        own_steps: the first steps, which draw nothing and learn with the model's own N.
    """

    drawn_from: tuple[int, ...]
    own: int
    seed: int
    own_steps: int = 0

    @classmethod
    def of(cls, recipe: Recipe) -> "Degrees":
        """What a recipe asks for."""
        own = recipe.model.num_sublayers
        training = recipe.training
        return cls(training.sublayers or (own,), own, training.seed, training.own_sublayers_steps)

    def at(self, step: int) -> int:
        """N of the optimizer step behind ``step`` others."""
        if step < self.own_steps:
            return self.own
        digest = hashlib.sha256(f"{self.seed} {step}".encode()).digest()
        return self.drawn_from[int.from_bytes(digest, "big") % len(self.drawn_from)]

    @property
    def others(self) -> tuple[int, ...]:
        """Those but the model's own."""
        return tuple(n for n in self.drawn_from if n != self.own)

    def evaluation(self, n: int) -> str:
        """What Trainer calls an evaluation with N = n; its loss is this with ``_loss`` behind."""
        return "eval" if n == self.own else f"eval_sublayers_{n}"
