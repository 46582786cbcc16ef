"""A training recipe: what a TOML file may say, and what it means.

Unknown keys are refused, and the resolved recipe, every default filled in, is saved with the run.
"""

import dataclasses
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from krakenlm.config import ModelConfig, Rule, WiringName, derive, finest_layout, model_config
from krakenlm.errors import KrakenError
from krakenlm.strict import check_types, from_plain, refuse_unknown
from krakenlm.utf8 import read_utf8

# The one key with a name that everybody types.
_SHORT_NAMES = {"training.lr": "training.learning_rate"}


@dataclass(frozen=True, kw_only=True, slots=True)
class _Derivation:
    """The ``[model.derive]`` table; see ``krakenlm.config.derive``."""

    sublayers: int
    rule: Rule = "published"
    wiring: WiringName | None = None
    head_dim: int = 0
    kv_heads: int = 0
    message_parts: int = 1
    late_layers: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Training:
    """The ``[training]`` table. Defaults follow the published runs where they name a value.

    Attributes:
        steps: optimizer steps.
        batch_size: sequences of one forward pass at most; with ``gradient_accumulation`` it says
            how many a step learns from, on however many processes.
        gradient_accumulation: forward passes of one step, on one process.
        sequence_length: tokens of a sequence; 0 is the model's context.
        learning_rate: at the top of the schedule.
        min_learning_rate_ratio: what the cosine falls to, as a share of ``learning_rate``.
        schedule_steps: steps that the schedule runs over; 0 is all. After them the learning rate
            stays where it ended. ``krakenlm train --extend`` sets it.
        warmup_steps: linear from 0.
        weight_decay: on matrices and embeddings, never on norms and biases.
        beta1: AdamW's.
        beta2: AdamW's.
        max_grad_norm: gradients are clipped to this norm.
        precision: ``auto`` computes in bfloat16 where the device has it; weights stay float32.
        device: ``auto`` uses a GPU where there is one.
        parallel: what several processes, started by torchrun or accelerate, divide: ``ddp`` the
            sequences of a step; ``fsdp``, between GPUs, also weights, gradients and optimizer
            state.
        gradient_checkpointing: recompute activations instead of keeping them.
        compile: run the model through ``torch.compile``.
        seed: of initial weights, order of the data and dropout.
        sublayers: where N is a choice when a model is loaded, the numbers from which each step
            draws the N that it learns with; without them all learn with the model's own.
        own_sublayers_steps: where N is drawn, the first steps, which learn with the model's own.
        log_every: steps between two values of the training loss.
        eval_every: steps between two values of the validation loss; 0 is only at the end.
        eval_batches: batches that a validation loss is taken from.
        save_every: steps between checkpoints; 0 is none, so an interrupted run starts over.
        keep_checkpoints: how many to keep.
        on_full_disk: where there is no room for a checkpoint, `stop` with the last good one, or
            `go-on` without it; the finished model needs its room in any case.
        tensorboard: also write TensorBoard files, below ``checkpoints``.
        wandb: also report to Weights & Biases.
    """

    steps: int
    batch_size: int
    gradient_accumulation: int = 1
    sequence_length: int = 0
    learning_rate: float
    min_learning_rate_ratio: float = 0.1
    schedule_steps: int = 0
    warmup_steps: int = 0
    weight_decay: float = 0.1
    beta1: float = 0.9
    beta2: float = 0.95
    max_grad_norm: float = 1.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    parallel: Literal["ddp", "fsdp"] = "ddp"
    gradient_checkpointing: bool = False
    compile: bool = False
    seed: int = 0
    sublayers: tuple[int, ...] | None = None
    own_sublayers_steps: int = 0
    log_every: int = 10
    eval_every: int = 0
    eval_batches: int = 20
    save_every: int = 0
    keep_checkpoints: int = 2
    on_full_disk: Literal["stop", "go-on"] = "stop"
    tensorboard: bool = False
    wandb: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("steps", "batch_size", "gradient_accumulation", "log_every", "eval_batches"):
            _need(name, getattr(self, name), getattr(self, name) >= 1, "1 or more")
        _need("keep_checkpoints", self.keep_checkpoints, self.keep_checkpoints >= 1, "1 or more")
        counts = (
            *("sequence_length", "schedule_steps", "warmup_steps", "eval_every", "save_every"),
            *("seed", "own_sublayers_steps"),
        )
        for name in counts:
            _need(name, getattr(self, name), getattr(self, name) >= 0, "0 or more")
        _need("learning_rate", self.learning_rate, 0 < self.learning_rate < 10, "above 0, below 10")
        _need("sequence_length", self.sequence_length, self.sequence_length != 1, "2 or more, or 0")
        _need("seed", self.seed, self.seed < 1 << 32, "less than 2**32")
        ratio = self.min_learning_rate_ratio
        _need("min_learning_rate_ratio", ratio, 0 <= ratio <= 1, "0 to 1")
        _need(
            "schedule_steps",
            self.schedule_steps,
            self.schedule_steps <= self.steps,
            "at most steps",
        )
        within = "at most schedule_steps" if self.schedule_steps else "at most steps"
        _need("warmup_steps", self.warmup_steps, self.warmup_steps <= self.scheduled_steps, within)
        _need("weight_decay", self.weight_decay, 0 <= self.weight_decay < 10, "0 to 10")
        _need("max_grad_norm", self.max_grad_norm, self.max_grad_norm > 0, "more than 0")
        for name in ("beta1", "beta2"):
            _need(name, getattr(self, name), 0 <= getattr(self, name) < 1, "0 or more, below 1")
        self._check_sublayers()

    def _check_sublayers(self) -> None:
        if self.sublayers is not None:
            numbers = list(self.sublayers)
            _need("sublayers", numbers, numbers and min(numbers) >= 1, "numbers of 1 or more")
            _need("sublayers", numbers, len({*numbers}) == len(numbers), "each number once")
        if self.own_sublayers_steps:
            name, steps = "own_sublayers_steps", self.own_sublayers_steps
            _need(name, steps, self.sublayers is not None, "0 unless sublayers are drawn from")
            _need(name, steps, steps < self.steps, "less than steps")

    @property
    def scheduled_steps(self) -> int:
        """Steps until the learning rate stays where it is."""
        return self.schedule_steps or self.steps

    @property
    def last_learning_rate(self) -> float:
        """What the schedule ends at: the foot of the cosine, or its top where there is none."""
        only_warms_up = self.warmup_steps == self.scheduled_steps
        return self.learning_rate * (1.0 if only_warms_up else self.min_learning_rate_ratio)

    @property
    def sequences_per_step(self) -> int:
        """Sequences that one optimizer step learns from."""
        return self.batch_size * self.gradient_accumulation


@dataclass(frozen=True, kw_only=True, slots=True)
class Adaptation:
    """The ``[adapt]`` table: go on from a trained model, and learn from it as it was.

    Layers before the first late one compute what they did, and are not trained.

    Attributes:
        teacher: the folder of a model with the same weights whose sums are awaited.
        layerwise_steps: the first steps, in which each layer learns the output that it had; after
            them the logits are learned, by KL divergence.
        layerwise_weight: of the layers' loss beside that of the logits.
        train_embeddings: train the embedding and the head as well.
    """

    teacher: Path
    layerwise_steps: int = 0
    layerwise_weight: float = 0.0
    train_embeddings: bool = False

    def __post_init__(self) -> None:
        check_types(self)
        _need("layerwise_steps", self.layerwise_steps, self.layerwise_steps >= 0, "0 or more")
        weight = self.layerwise_weight
        _need("layerwise_weight", weight, 0 <= weight < float("inf"), "0 or more")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """A whole training run.

    Attributes:
        model: the configuration to start from, and the layout of the finished model.
        data: a folder that ``krakenlm prepare`` wrote.
        output: the run's folder.
        training: how.
        adapt: where it starts from the weights of a trained model.
    """

    model: ModelConfig
    data: Path
    output: Path
    training: Training
    adapt: Adaptation | None = None

    def __post_init__(self) -> None:
        assert self.trained_model  # refuses numbers that do not fit the model

    @property
    def trained_model(self) -> ModelConfig:
        """The layout that training keeps the weights in: that of ``model``, unless N is drawn."""
        numbers = self.training.sublayers
        return self.model if numbers is None else finest_layout(self.model, numbers)

    def to_dict(self) -> dict[str, Any]:
        """The resolved recipe as plain values, every default filled in."""
        return {
            "model": self.model.to_dict(),
            "data": str(self.data),
            "output": str(self.output),
            "training": dataclasses.asdict(self.training),
            "adapt": None if self.adapt is None else _plain(self.adapt),
        }


def _plain(adaptation: Adaptation) -> dict[str, Any]:
    return {**dataclasses.asdict(adaptation), "teacher": str(adaptation.teacher)}


def read_recipe(
    path: Path, vocab_size_of: Callable[[Path], int], overrides: Sequence[str] = ()
) -> Recipe:
    """Read a TOML recipe.

    Args:
        path: the file. Relative folders in it are relative to the working directory.
        vocab_size_of: a function from the data folder to its vocabulary's size, used where the
            recipe does not fix ``vocab_size``.
        overrides: ``KEY=VALUE`` each, in place of what the file says: dotted keys such as
            ``training.steps``, and values as TOML writes them, where a plain word needs no quotes.

    Raises:
        KrakenError: the file, a key or a value is wrong; the message names it.
    """
    try:
        values = tomllib.loads(read_utf8(path))
    except FileNotFoundError as error:
        raise KrakenError(f"{path} is missing: give a recipe, see recipes/") from error
    except IsADirectoryError as error:
        raise KrakenError(f"{path} is a folder: give a recipe file, see recipes/") from error
    except OSError as error:
        raise KrakenError(f"cannot read {path}: {error.strerror}: give a recipe file") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise KrakenError(f"{path} is not valid TOML: {error}") from error
    for override in overrides:
        _override(values, override)
    try:
        return _resolve(values, vocab_size_of)
    except KrakenError as error:
        shown = " ".join([str(path), *(f"--set {override}" for override in overrides)])
        raise KrakenError(f"{shown}: {error}") from error


def with_overrides(recipe: Recipe, overrides: Sequence[str], tables: Sequence[str]) -> Recipe:
    """A recipe with other values.

    Args:
        recipe: to begin with.
        overrides: as ``read_recipe`` takes them.
        tables: that they may name.

    Raises:
        KrakenError: a key or a value is wrong; the message names it.
    """
    values = recipe.to_dict()
    for override in overrides:
        key = override.partition("=")[0].strip()
        table = _SHORT_NAMES.get(key, key).partition(".")[0]
        if table not in tables:
            raise KrakenError(
                f"--set {override}: give a key of {' or '.join(tables)}, such as {tables[0]}.seed=1"
            )
        _override(values, override)
    try:
        return _resolve(values, lambda data: recipe.model.vocab_size)
    except KrakenError as error:
        raise KrakenError(f"--set {' --set '.join(overrides)}: {error}") from error


def _override(values: dict[str, Any], override: str) -> None:
    """Put one ``KEY=VALUE`` into the tables; whether the key is known is asked afterwards."""
    key, equals, text = override.partition("=")
    *tables, name = _SHORT_NAMES.get(key.strip(), key.strip()).split(".")
    if not equals or not all([*tables, name]):
        raise KrakenError(f"--set {override}: needs KEY=VALUE, such as training.steps=100")
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise KrakenError(f"--set {override}: {table} is no table: leave out what follows it")
    values[name] = _toml_value(text.strip())


def _toml_value(text: str) -> Any:
    """A value as TOML writes it; what is none, such as a folder without quotes, is text."""
    try:
        parsed = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError):
        return text
    return parsed["value"] if parsed.keys() == {"value"} else text


def model_from_table(table: Mapping[str, Any]) -> ModelConfig:
    """The ``[model]`` table: a named size or explicit fields, and perhaps a Kraken derived.

    ``base`` names a size, and all other keys are fields of ``ModelConfig``. A table ``derive``
    turns that standard model into its Kraken match: ``sublayers``, and as `krakenlm derive` takes
    them ``rule``, ``wiring``, ``head_dim``, ``kv_heads``, ``message_parts`` and ``late_layers``.
    """
    fields = dict(table)
    base, derivation = fields.pop("base", None), fields.pop("derive", None)
    known = {field.name for field in dataclasses.fields(ModelConfig)}
    refuse_unknown(fields, known | {"base", "derive"}, " in [model]")
    if base is not None:
        _need("base", base, isinstance(base, str), "a size such as '124M'")
        config = model_config(base, wiring=fields.pop("wiring", None), **fields)
    elif derivation is not None:
        config = ModelConfig.from_dict({"wiring": "standard", "num_sublayers": 1, **fields})
    else:
        config = ModelConfig.from_dict(fields)
    if derivation is None:
        return config
    wanted = from_plain(_Derivation, derivation, "[model.derive]")
    return derive(
        config,
        wanted.sublayers,
        rule=wanted.rule,
        wiring=wanted.wiring,
        head_dim=wanted.head_dim,
        kv_heads=wanted.kv_heads,
        message_parts=wanted.message_parts,
        late_layers=wanted.late_layers,
    )


def _resolve(values: Mapping[str, Any], vocab_size_of: Callable[[Path], int]) -> Recipe:
    refuse_unknown(values, {"model", "data", "output", "training", "adapt"})
    for key in ("model", "data", "output", "training"):
        if key not in values:
            raise KrakenError(f"{key} is missing: see recipes/ for an example")
    for key, kind in (("data", str), ("output", str), ("model", dict), ("training", dict)):
        if not isinstance(values[key], kind):
            raise KrakenError(f"{key}={values[key]!r}: needs a {kind.__name__}")
    data, adapt = Path(values["data"]), values.get("adapt")
    model_table = dict(values["model"])
    model_table.setdefault("vocab_size", vocab_size_of(data))
    return Recipe(
        model=model_from_table(model_table),
        data=data,
        output=Path(values["output"]),
        training=from_plain(Training, values["training"], "[training]"),
        adapt=None if adapt is None else from_plain(Adaptation, adapt, "[adapt]"),
    )


def _need(name: str, value: object, holds: object, what: str) -> None:
    if not holds:
        raise KrakenError(f"{name}={value!r}: needs {what}")
