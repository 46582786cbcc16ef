"""What the demo does, in numbers: the models, their training, the links they are timed over."""

from dataclasses import dataclass
from pathlib import Path

from krakenlm.bench import models
from krakenlm.bench.results import BASELINE
from krakenlm.config import WIRINGS, ModelConfig, model_config
from krakenlm.train.recipe import Recipe, Training
from krakenlm.transport.links import Link

DEVICES = 2
RECOMMENDED = "shared/2"
"""What this project speaks for; the demo trains it and judges it like the rest.

Named as ``krakenlm bench latency --wirings`` takes it: shared, with sums of half the channels.
"""


@dataclass(frozen=True, kw_only=True)
class Wire:
    """A link that the models are timed over.

    Attributes:
        name: for files.
        title: for people.
        where: the same within a sentence.
        rate: of a veth pair, as tc takes it; None is the memory of one host.
        emulated: what stands for it where no veth pair can be made.
        rounds: that count.
        warm_up: rounds before them.
        record: whether the timeline comes from here.
    """

    name: str
    title: str
    where: str
    rate: str | None = None
    emulated: Link | None = None
    rounds: int
    warm_up: int = 1
    record: bool = False


WIRES = (
    Wire(name="one-host", title="one host", where="on one host", rounds=4),
    Wire(
        name="1gbit",
        title="1 Gbit/s",
        where="at 1 Gbit/s",
        rate="1gbit",
        emulated=Link(gbps=1, latency_us=50),
        rounds=5,
        record=True,
    ),
    Wire(
        name="100mbit",
        title="100 Mbit/s",
        where="at 100 Mbit/s",
        rate="100mbit",
        emulated=Link(gbps=0.1, latency_us=50),
        rounds=3,
    ),
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Sizes that two cores get through in a few minutes.

    Attributes:
        out: the demo's folder.
        trained: what is trained; these and all other wirings are timed.
        steps: training steps of each model; 4 sequences of 256 tokens each.
        vocab_size: entries of the tokenizer.
        wires: what the models are timed over.
        timed_size: standard shape of the models that are timed, with random weights; those that are
            trained are too small for a link to matter.
        prompt_tokens: length of the prompt.
    """

    out: Path
    trained: tuple[str, ...] = (BASELINE, "kraken", RECOMMENDED)
    steps: int = 250
    vocab_size: int = 4096
    wires: tuple[Wire, ...] = WIRES
    timed_size: str = "124M"
    prompt_tokens: int = 512

    @property
    def timed(self) -> dict[str, ModelConfig]:
        """Every wiring there is, those that are trained first."""
        names = dict.fromkeys((*self.trained, *WIRINGS))
        return {name: in_wiring(self.timed_standard(), name) for name in names}

    def first_token(self, wire: Wire) -> Path:
        """Where the latencies over a link go."""
        return self.out / f"first_token-{wire.name}.json"

    @property
    def data(self) -> Path:
        """Where the tokens go."""
        return self.out / "data"

    def run(self, name: str) -> Path:
        """Where a training run goes."""
        return self.out / "runs" / name.replace("/", "-")

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

    def timed_standard(self) -> ModelConfig:
        """The standard model among those that are timed."""
        return model_config(self.timed_size)

    def recipe(self, name: str, vocab_size: int) -> Recipe:
        """How one model is trained; all see the same tokens in the same order."""
        return Recipe(
            model=in_wiring(self.standard(vocab_size), name),
            data=self.data,
            output=self.run(name),
            training=Training(
                steps=self.steps,
                batch_size=4,
                learning_rate=2e-3,
                warmup_steps=min(30, self.steps),
                log_every=min(10, self.steps),
                eval_every=max(1, self.steps // 5),
                eval_batches=8,
                save_every=max(1, self.steps // 3),
                device="auto",
            ),
        )


def in_wiring(standard: ModelConfig, name: str) -> ModelConfig:
    """A standard model's match, 2-way where that makes a difference; Krakens by the published rule.

    The others keep the standard model's weights, but for a norm in some. Names are those of
    ``krakenlm bench latency --wirings``.
    """
    (wanted,) = models.parse_wirings([name])
    (contender,) = models.in_wiring(standard, wanted, DEVICES, ["published"])
    return contender.config
