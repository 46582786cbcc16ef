"""What is asked of ``krakenlm adapt``, checked before anything is loaded."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krakenlm.adapt.sensitivity import Late
from krakenlm.config import ModelConfig, format_layers, rewired
from krakenlm.errors import KrakenError
from krakenlm.model.checkpoint import read_config
from krakenlm.train.models import check_teacher
from krakenlm.train.recipe import Adaptation, Recipe, Training, with_overrides

# Tokens of a sequence, and how a model is trained that only has to find back to what it was.
_SEQUENCE = 256
_AS_TOKENS_SAY = 10**9
_HOW: dict[str, Any] = {"learning_rate": 2e-4, "weight_decay": 0.0, "keep_checkpoints": 1}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An adaptation.

    Attributes:
        model: folder of the model that is adapted.
        data: prepared text to learn from.
        out: gets ``run/``, ``sensitivity.json`` and ``adapt.json``.
        config: the wiring and layout that it is adapted to, all layers late.
        sublayers: the N to draw from; one where nothing is drawn.
        late: how late layers are chosen.
        tokens: to learn from.
        overrides: ``KEY=VALUE`` of the recipe's tables.
    """

    model: Path
    data: Path
    out: Path
    config: ModelConfig
    sublayers: tuple[int, ...]
    late: Late
    tokens: int
    overrides: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        model: Path,
        data: Path,
        out: Path,
        *,
        wiring: str,
        sublayers: Sequence[int],
        message_parts: int,
        late: str | None,
        budget: str | None,
        tokens: int,
        overrides: Sequence[str],
    ) -> "Plan":
        """From the command's options.

        Raises:
            KrakenError: no such model, or one that cannot be adapted so.
        """
        stored = read_config(model)
        try:
            config = rewired(stored, wiring, max(sublayers), message_parts=message_parts)
            config = config.replace(dropout=0.0)  # the teacher has none either
        except KrakenError as error:
            raise KrakenError(f"{model}: {error}") from error
        if not config.traits.depends_on_degree and len(sublayers) > 1:
            raise KrakenError(
                f"--sublayers {','.join(map(str, sublayers))}: a {wiring} model is the same "
                "function for any number of them: give one"
            )
        check_teacher(Adaptation(teacher=model), config)
        plan = cls(
            model=model,
            data=data,
            out=out,
            config=config,
            sublayers=tuple(sublayers),
            late=Late.parse(late, budget, config.num_hidden_layers),
            tokens=tokens,
            overrides=tuple(overrides),
        )
        plan.recipe(range(config.num_hidden_layers))  # refuses what --set says wrong
        return plan

    @property
    def run(self) -> Path:
        """The folder of the training run."""
        return self.out / "run"

    def recipe(self, late: Sequence[int]) -> Recipe:
        """The recipe that trains the model with these layers late.

        Raises:
            KrakenError: an override that does not fit.
        """
        model = self.config.replace(late_layers=format_layers(late))
        length = min(_SEQUENCE, model.max_position_embeddings)
        asked = Training(
            steps=_AS_TOKENS_SAY,
            batch_size=8,
            sequence_length=length,
            eval_batches=8,
            sublayers=self.sublayers if len(self.sublayers) > 1 else None,
            **_HOW,
        )
        settings = self._recipe(model, asked).training
        steps = settings.steps
        if steps == _AS_TOKENS_SAY:
            steps = max(
                1, round(self.tokens / settings.sequences_per_step / settings.sequence_length)
            )
        followed = dataclasses.replace(
            settings,
            steps=steps,
            warmup_steps=steps // 20,
            log_every=max(1, steps // 100),
            eval_every=max(1, steps // 10),
            save_every=max(1, steps // 20),
        )
        return self._recipe(model, followed, layerwise_steps=steps // 10)

    def _recipe(self, model: ModelConfig, training: Training, layerwise_steps: int = 0) -> Recipe:
        recipe = Recipe(
            model=model,
            data=self.data,
            output=self.run,
            training=training,
            adapt=Adaptation(teacher=self.model, layerwise_steps=layerwise_steps),
        )
        return with_overrides(recipe, self.overrides, tables=("training", "adapt"))
