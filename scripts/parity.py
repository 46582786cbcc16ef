"""How near does a Kraken's perplexity come to the standard model's, for each number of sub-layers?

    python scripts/parity.py --text TEXT... [--recipe recipes/parity-cpu.toml] [--processes 2]
    python scripts/parity.py --draw

One recipe is trained as the standard model, in every wiring that shares its weights, once with N
drawn for each step, and as Kraken, each Kraken by the published rule and by keep-width, on the same
tokens in the same order. Every model gets the same grid of learning rates on the first seed, and as
many further ones as it takes until its best rate has a worse one on either side; then its two best
rates get the second seed, and the better of them by both seeds all others. With one learning rate
nothing is tuned, and with one seed nothing is repeated. Each training run is one ``krakenlm train``
on one thread, several side by side; its losses are kept under docs/results/parity, and a run that
is there already is not trained again, so that an interrupted protocol goes on. ``--draw`` trains
nothing and makes summary, picture and tables from those files.
"""

import argparse
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

import parity_page
import recording
from krakenlm.config import ModelConfig
from krakenlm.console import progress_bar
from krakenlm.data.manifest import Manifest
from krakenlm.environment import cores_here
from krakenlm.errors import KrakenError
from krakenlm.files import write_json
from krakenlm.strict import from_plain
from krakenlm.train.history import History
from krakenlm.train.recipe import Training, read_recipe
from parity_models import MODELS, VARIANTS, Model, chosen
from parity_page import Measured


@dataclass(frozen=True)
class Job:
    """One training run.

    Attributes:
        model: what is trained.
        learning_rate: at the top of its schedule.
        seed: of weights and of the order of the data.
        steps: in place of the recipe's, with a tenth of them to warm up.
    """

    model: Model
    learning_rate: float
    seed: int
    steps: int | None = None

    @property
    def name(self) -> str:
        """Of its files."""
        model = self.model.name.replace(",", "").replace(" ", "-")
        steps = "" if self.steps is None else f"-steps{self.steps}"
        return f"{model}-lr{self.learning_rate:g}-seed{self.seed}{steps}"

    @property
    def overrides(self) -> list[str]:
        """What it changes of the recipe."""
        settings = [f"training.learning_rate={self.learning_rate!r}", f"training.seed={self.seed}"]
        if self.steps is not None:
            settings += [f"training.steps={self.steps}"]
            settings += [f"training.warmup_steps={self.steps // 10}"]
        return [*self.model.changes, *settings]


Command = Callable[[Sequence[str], Path], int]


class Protocol:
    """Trains what is missing.

    Args:
        recipe: of the standard model.
        results: folder that keeps what the runs found.
        work: folder for tokens, runs and their output.
        processes: training runs side by side.
        command: runs one ``krakenlm`` command with its output in a file, and gives its exit code.
        changes: to the recipe, for all models.
    """

    def __init__(
        self,
        recipe: Path,
        results: Path,
        work: Path,
        processes: int,
        command: Command,
        changes: Sequence[str] = (),
    ) -> None:
        self._recipe = recipe
        self._results = results
        self._work = work
        self._processes = processes
        self._command = command
        self._changes = changes
        self._data = work / "data"

    def prepare(self, texts: Sequence[Path], vocabulary: str) -> None:
        """Turn text into tokens, unless they are there.

        Raises:
            KrakenError: what is there was made from other text or with another tokenizer.
        """
        if (self._data / "manifest.json").is_file():
            self._check_tokens(texts, vocabulary)
            return
        text = [word for text in texts for word in ("--text", str(text))]
        command = ["prepare", *text, "--tokenizer", vocabulary, str(self._data)]
        if code := recording.run([*recording.KRAKENLM, *command]).code:
            raise KrakenError(f"krakenlm prepare ended with {code}: see above")

    def _check_tokens(self, texts: Sequence[Path], vocabulary: str) -> None:
        """Refuse tokens that an earlier call made of something else; no text asks for none."""
        manifest = Manifest.load(self._data)
        there = [Path(source.path).name for source in manifest.sources]
        if texts and [text.name for text in texts] != there:
            raise KrakenError(
                f"{self._data} was prepared from {', '.join(there)}: give that --text, or another "
                "folder with --work"
            )
        if vocabulary != manifest.tokenizer.source:
            raise KrakenError(
                f"{self._data} was prepared with --tokenizer {manifest.tokenizer.source}: give "
                "that, or another folder with --work"
            )

    def train(self, jobs: Iterable[Job], title: str) -> list[Measured]:
        """Train those of the jobs that have no result yet; give the results of all."""
        jobs = list(jobs)
        with (
            progress_bar() as bar,
            ThreadPoolExecutor(self._processes) as pool,
        ):
            task = bar.add_task(title, total=len(jobs))
            futures = [pool.submit(self._measured, job) for job in jobs]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.advance(task)
            except BaseException:
                pool.shutdown(wait=True, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _measured(self, job: Job) -> Measured:
        """The job's result, trained now if it must be."""
        setting = self._setting(job)
        kept = parity_page.runs_in(self._results) / f"{job.name}.json"
        if kept.is_file():
            found = Measured.load(kept)
            if _with_defaults(found.setting) == setting:
                return found
        run = self._run(job)
        history = History.load(run / "history.json")
        assert history is not None, f"{run} was trained"
        found = Measured(
            model=job.model.name,
            learning_rate=job.learning_rate,
            seed=job.seed,
            history=history,
            setting=setting,
        )
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_json(kept, asdict(found))
        return found

    def _setting(self, job: Job) -> dict[str, Any]:
        """All that the result depends on."""
        manifest = Manifest.load(self._data)
        changes = [*self._changes, *job.overrides]
        recipe = read_recipe(self._recipe, lambda data: manifest.vocab_size, changes)
        resolved = recipe.to_dict()
        splits = manifest.splits
        data = {"train": splits.train.sha256, "validation": splits.validation.sha256}
        setting = {"model": resolved["model"], "training": resolved["training"], "data": data}
        return _with_defaults(setting)

    def _run(self, job: Job) -> Path:
        """Train; what the run says goes to a file beside it."""
        run = self._work / "runs" / job.name
        run.parent.mkdir(parents=True, exist_ok=True)
        changes = [*self._changes, *job.overrides, f"data={self._data}", f"output={run}"]
        sets = [word for change in changes for word in ("--set", change)]
        log = run.parent / f"{job.name}.log"
        if code := self._command(["train", str(self._recipe), *sets], log):
            lines = log.read_text(encoding="utf-8").splitlines() or ["nothing was said"]
            raise KrakenError(f"{job.name}: training ended with {code}: {lines[-1]}: see {log}")
        return run


def krakenlm_on_one_thread(arguments: Sequence[str], log: Path) -> int:
    """Run a command of the package with its output in a file; give its exit code."""
    command = [*recording.KRAKENLM, *arguments]
    return recording.run(command, environment={"OMP_NUM_THREADS": "1"}, log=log).code


def _with_defaults(setting: dict[str, Any]) -> dict[str, Any]:
    """A result stays valid when an option is added that it does not use."""
    model = ModelConfig.from_dict(setting["model"]).to_dict()
    training = asdict(from_plain(Training, setting["training"]))
    return {**setting, "model": model, "training": training}


def tune_and_repeat(
    protocol: Protocol, models: Sequence[Model], rates: Sequence[float], seeds: Sequence[int]
) -> list[Measured]:
    """Learning rates, two seeds for those that come in question, all seeds at each model's best.

    One seed alone would favour a rate that is high enough to be good now and then.
    """
    first, *later = seeds
    measured = []
    jobs = [Job(model, rate, first) for model in models for rate in rates]
    while jobs:
        measured += protocol.train(jobs, "learning rates")
        further = ((model, parity_page.next_rate(measured, model.name)) for model in models)
        jobs = [Job(model, rate, first) for model, rate in further if rate]
    for second in later[:1]:
        measured += protocol.train(
            [
                Job(model, rate, second)
                for model in models
                for rate in parity_page.rates_by_loss(measured, model.name)[:2]
            ],
            "second seed",
        )
    best = {model.name: parity_page.best_rate(measured, model.name) for model in models}
    repeats = [Job(model, best[model.name], seed) for seed in later[1:] for model in models]
    return [*measured, *protocol.train(repeats, "other seeds")]


def try_options(
    protocol: Protocol,
    variants: Sequence[Model],
    measured: Sequence[Measured],
    seeds: Sequence[int],
) -> list[Measured]:
    """All seeds of each variant at the best rate of the model that it varies."""
    jobs = [
        Job(model, parity_page.best_rate(measured, model.rate_of), seed)
        for seed in seeds
        for model in variants
    ]
    return protocol.train(jobs, "options")


def train(options: argparse.Namespace) -> None:
    """Train what is missing, then sum up."""
    protocol, results = prepared(options), options.results.resolve()
    models, variants = chosen(options.models)
    measured = tune_and_repeat(protocol, models, options.learning_rates, options.seeds)
    _sum_up(measured, options, results)
    if variants:
        measured += try_options(protocol, variants, measured, options.seeds)
        _sum_up(measured, options, results)


def with_kept(measured: Sequence[Measured], results: Path) -> list[Measured]:
    """Together with what earlier calls measured of other models on the same tokens, in order."""
    names = [model.name for model in (*MODELS, *VARIANTS)]
    found = {run.model for run in measured}
    kept = map(Measured.load, sorted(parity_page.runs_in(results).glob("*.json")))
    data = measured[0].setting["data"]
    others = [run for run in kept if run.model in {*names} - found and run.setting["data"] == data]
    return sorted([*measured, *others], key=lambda run: names.index(run.model))


def _sum_up(measured: Sequence[Measured], options: argparse.Namespace, results: Path) -> None:
    texts = [text.name for text in options.text]
    environment = recording.environment(_gpu(options.recipe))["environment"]
    found = parity_page.summary(
        with_kept(measured, results), texts, options.recipe.name, environment
    )
    parity_page.write_summary(results, found)


def _gpu(recipe: Path) -> str:
    """Name of the GPU that the recipe trains on; empty where it is none."""
    if read_recipe(recipe, lambda data: 1).training.device == "cpu":
        return ""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def protocol_options(
    description: str | None, recipe: str, rates: Sequence[float], results: Path
) -> argparse.ArgumentParser:
    """What a protocol's script takes.

    Args:
        description: the script's docstring.
        recipe: name of the recipe that it trains by default.
        rates: learning rates, by default.
        results: where they are kept, by default; runs get a folder of that name.
    """
    parser = recording.option_parser(description)
    add = partial(parser.add_argument, metavar="...")
    add("--text", type=Path, nargs="+", default=[], help="what to learn from")
    add("--tokenizer", default="train:2048", help="as `krakenlm prepare` takes it")
    add("--recipe", type=Path, default=recording.ROOT / "recipes" / f"{recipe}.toml")
    add("--set", nargs="+", default=[], dest="changes", help="KEY=VALUE of the recipe, for all")
    add("--learning-rates", type=float, nargs="+", default=list(rates))
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="the first one tunes")
    add("--results", type=Path, default=results, help="where results are kept")
    add("--processes", type=int, default=len(cores_here()), help="runs side by side")
    work = recording.ROOT / "runs" / results.name
    add("--work", type=Path, default=work, help="for tokens and runs")
    return parser


def prepared(options: argparse.Namespace) -> Protocol:
    """The protocol that a script's options ask for, with its tokens there."""
    results, work = options.results.resolve(), options.work.resolve()
    protocol = Protocol(
        options.recipe, results, work, options.processes, krakenlm_on_one_thread, options.changes
    )
    protocol.prepare(options.text, options.tokenizer)
    return protocol


def option_parser() -> argparse.ArgumentParser:
    """What this script takes."""
    rates = [1.5e-3, 3e-3, 6e-3]
    parser = protocol_options(__doc__, "parity-cpu", rates, parity_page.RESULTS)
    names = [model.name for model in (*MODELS, *VARIANTS)]
    parser.add_argument(
        "--models",
        nargs="+",
        default=[],
        choices=names,
        metavar="...",
        help=f"beside the standard one; all by default: {'; '.join(names)}",
    )
    return parser


if __name__ == "__main__":
    recording.measure_and_draw(
        option_parser(),
        train,
        pages=[parity_page.PAGE],
        tables=parity_page.TABLES,
        pictures=lambda options: parity_page.draw(options.results.resolve()),
    )
