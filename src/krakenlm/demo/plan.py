"""What the demo does, in numbers: the two models, their training, the measurement."""

from dataclasses import dataclass
from pathlib import Path

from krakenlm.config import ModelConfig, WiringName, derive
from krakenlm.train.recipe import Recipe, Training

DEVICES = 2


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes that two cores get through in a few minutes.

    Attributes:
        out: the demo's folder.
        steps: training steps of each model; 4 sequences of 256 tokens each.
        vocab_size: entries of the tokenizer.
        repetitions: rounds of the latency measurement.
        prompt_tokens: length of its prompt.
    """

    out: Path
    steps: int = 400
    vocab_size: int = 4096
    repetitions: int = 60
    prompt_tokens: int = 192

    @property
    def data(self) -> Path:
        """Where the tokens go."""
        return self.out / "data"

    def run(self, wiring: WiringName) -> Path:
        """Where a training run goes."""
        return self.out / "runs" / wiring

    def standard(self, vocab_size: int) -> ModelConfig:
        """The twin: a small GPT-2-style model."""
        return ModelConfig(
            wiring="standard",
            num_sublayers=1,
            hidden_size=192,
            num_hidden_layers=6,
            heads_per_sublayer=6,
            vocab_size=vocab_size,
            max_position_embeddings=256,
        )

    def models(self, vocab_size: int) -> dict[WiringName, ModelConfig]:
        """All four wirings: three share the standard shape, Kraken is its published match."""
        standard = self.standard(vocab_size)
        return {
            "standard": standard,
            "parallel": standard.replace(wiring="parallel"),
            "ladder": standard.replace(wiring="ladder"),
            "kraken": derive(standard, DEVICES),
        }

    def recipe(self, wiring: WiringName, vocab_size: int) -> Recipe:
        """How one model is trained; both see the same tokens in the same order."""
        return Recipe(
            model=self.models(vocab_size)[wiring],
            data=self.data,
            output=self.run(wiring),
            training=Training(
                steps=self.steps,
                batch_size=4,
                learning_rate=2e-3,
                warmup_steps=min(30, self.steps),
                log_every=min(10, self.steps),
                eval_every=max(1, self.steps // 5),
                eval_batches=16,
                save_every=max(1, self.steps // 3),
                device="auto",
            ),
        )
