"""The demo's steps, each of which reuses what an earlier run left."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krakenlm.bench import latency
from krakenlm.bench.models import Contender
from krakenlm.bench.results import LatencyReport
from krakenlm.config import WiringName, count_parameters
from krakenlm.console import notes, progress_bar
from krakenlm.data.manifest import Manifest
from krakenlm.data.text import check_files
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.data.tokens import open_split, prepare
from krakenlm.demo.plan import DEVICES, Plan
from krakenlm.engine.generation import Ranks, Request, Step, generate_tokens
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.sampling import Sampling
from krakenlm.engine.trace import Event
from krakenlm.errors import KrakenError
from krakenlm.eval.perplexity import PerplexityResult, perplexity
from krakenlm.files import write_json
from krakenlm.train.run_folder import RunFolder
from krakenlm.train.trainer import train

TRAINED: tuple[WiringName, ...] = ("kraken", "standard")
# Enough validation text for a steady number, little enough to score in seconds.
_VALIDATION_BYTES = 250_000
_MADE_BY_DEMO = {
    "data",
    "runs",
    "inputs.json",
    "first_token.json",
    "timelines.json",
    "results.json",
    "losses.png",
    "first_token.png",
    "timeline.png",
    "report.html",
}


@dataclass(frozen=True, kw_only=True)
class Sample:
    """What the Kraken model wrote.

    Attributes:
        prompt: the beginning of the validation text.
        answer: what two processes drew, with ``sampling``.
        sampling: how.
        greedy_tokens_agree: whether one and two processes chose the same greedy tokens.
        greedy_tokens: how many of them were compared.
    """

    prompt: str
    answer: str
    sampling: Sampling
    greedy_tokens_agree: bool
    greedy_tokens: int


def claim_folder(plan: Plan, texts: Sequence[Path]) -> None:
    """Take the demo's folder; what another text or another plan left there is discarded.

    Raises:
        KrakenError: a text is missing, or the folder holds something that is not a demo's.
    """
    check_files(texts)
    wanted = json.loads(json.dumps({"plan": _plain(plan), "texts": [_state(t) for t in texts]}))
    inputs = plan.out / "inputs.json"
    found = _read_inputs(inputs)
    if found == wanted:
        return
    if found is not None:
        notes.print(f"{plan.out} was made from other text or settings: beginning anew")
        _discard(plan, texts)
    elif plan.out.exists() and (not plan.out.is_dir() or any(plan.out.iterdir())):
        raise KrakenError(f"{plan.out} is not empty and holds no demo: choose another --out")
    write_json(inputs, wanted)


def _discard(plan: Plan, texts: Sequence[Path]) -> None:
    """Remove what an earlier demo made, and nothing else."""
    made = [path for path in plan.out.iterdir() if path.name in _MADE_BY_DEMO]
    for text in texts:
        if any(text.resolve().is_relative_to(path.resolve()) for path in made):
            raise KrakenError(
                f"{text} lies in {plan.out}, which would be made anew: move the text or choose "
                "another --out"
            )
    for path in made:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def make_tokens(plan: Plan, texts: Sequence[Path]) -> Manifest:
    """Train the tokenizer and tokenize the text, unless that is done."""
    if plan.data.is_dir():
        notes.print(f"{plan.data}: tokens are there already")
        return Manifest.load(plan.data)
    size = sum(text.stat().st_size for text in texts)
    return prepare(
        texts,
        f"train:{plan.vocab_size}",
        plan.data,
        validation_fraction=min(0.05, max(1e-4, _VALIDATION_BYTES / size)),
    )


def train_models(plan: Plan, manifest: Manifest) -> dict[WiringName, RunFolder]:
    """Train Kraken and its twin on the same tokens in the same order."""
    return {w: train(plan.recipe(w, manifest.vocab_size)) for w in TRAINED}


def score_models(plan: Plan, runs: dict[WiringName, RunFolder]) -> dict[str, PerplexityResult]:
    """Perplexity of both models on the validation text."""
    scores: dict[str, PerplexityResult] = {}
    for wiring, run in runs.items():
        notes.print(f"scoring the {wiring} model")
        scores[wiring] = perplexity(run.model, plan.data, batch_size=8)
    return scores


def write_sample(plan: Plan, model: Path) -> Sample:
    """Let two processes continue the validation text, and compare them with one process."""
    tokenizer = load_tokenizer(model)
    prompt = open_split(plan.data, "validation").tokens[:24].tolist()
    drawn = Sampling(temperature=0.8, top_k=50)
    answer = _generate(model, prompt, 48, drawn, DEVICES)
    greedy = [_generate(model, prompt, 32, Sampling(), devices) for devices in (1, DEVICES)]
    return Sample(
        prompt=str(tokenizer.decode(prompt)),
        answer=str(tokenizer.decode(answer)),
        sampling=drawn,
        greedy_tokens_agree=greedy[0] == greedy[1],
        greedy_tokens=len(greedy[0]),
    )


def time_first_token(
    plan: Plan, manifest: Manifest
) -> tuple[LatencyReport, dict[str, list[Event]]]:
    """Measure all four wirings on two processes, unless that is done."""
    report_file, timeline_file = plan.out / "first_token.json", plan.out / "timelines.json"
    if report_file.is_file() and timeline_file.is_file():
        notes.print(f"{report_file}: measured already, remove it to measure again")
        recorded = json.loads(timeline_file.read_text(encoding="utf-8"))
        timelines = {w: [Event(*event) for event in events] for w, events in recorded.items()}
        return LatencyReport.load(report_file), timelines
    models = plan.models(manifest.vocab_size)
    setup = latency.Setup(
        devices=DEVICES,
        input_len=plan.prompt_tokens,
        output_len=1,
        iterations=plan.repetitions,
        warm_up=2,
        dtype="float32",
        device="cpu",
        record=True,
    )
    with progress_bar() as bar:
        task = bar.add_task(f"timing the first token on {DEVICES} processes", total=setup.rounds)
        measured = latency.measure(
            [Contender(config=config, label=wiring) for wiring, config in models.items()],
            setup,
            title=f"{count_parameters(models['standard']) / 1e6:.1f}M parameters, "
            f"{plan.prompt_tokens}-token prompt, {DEVICES} processes, float32",
            on_round=lambda: bar.advance(task),
        )
    assert measured is not None, "the demo starts its own ranks"
    report, timelines = measured
    write_json(timeline_file, timelines)
    write_json(report_file, report.to_json())
    return report, timelines


def _generate(
    model: Path, prompt: list[int], count: int, sampling: Sampling, devices: int
) -> list[int]:
    steps: list[Step] = []
    request = Request(
        directory=model,
        prompts=[prompt],
        max_new_tokens=count,
        sampling=sampling,
        eos_token_ids=frozenset(),
        dtype="float32",
        options=EngineOptions(),
    )
    generate_tokens(request, Ranks(devices, "cpu"), steps.append)
    return [step.tokens[0] for step in steps]


def _plain(plan: Plan) -> dict[str, Any]:
    return {**asdict(plan), "out": None}


def _read_inputs(path: Path) -> dict[str, Any] | None:
    """What a demo was made from; None where the file is missing or not one that a demo wrote."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values if isinstance(values, dict) and values.keys() == {"plan", "texts"} else None


def _state(text: Path) -> tuple[str, int, int]:
    """What tells whether a file changed."""
    status = text.stat()
    return str(text.resolve()), status.st_size, status.st_mtime_ns
