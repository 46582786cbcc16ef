"""The demo's steps, each of which reuses what an earlier run left."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from krakenlm.console import notes
from krakenlm.data.manifest import Manifest
from krakenlm.data.text import check_files
from krakenlm.data.tokens import open_split, prepare
from krakenlm.demo.plan import DEVICES, Plan
from krakenlm.engine.generation import Ranks, Request, Step, generate_tokens
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.sampling import Sampling
from krakenlm.errors import KrakenError
from krakenlm.eval.perplexity import PerplexityResult, perplexity
from krakenlm.files import write_json
from krakenlm.train.run_folder import RunFolder
from krakenlm.train.trainer import train

# Enough validation text for a steady number, little enough to score in seconds.
_VALIDATION_BYTES = 150_000
# Patterns of names; a demo of an earlier plan left first_token.json.
_MADE_BY_DEMO = (
    *("data", "runs", "inputs.json", "results.json", "timelines.json", "report.html"),
    *("first_token.json", "first_token-*.json", "losses.png", "first_token.png", "timeline.png"),
)


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One and two processes, asked for the likeliest tokens of the recommended model.

    Attributes:
        tokens: how many were compared.
        agree: whether all of them are the same.
    """

    tokens: int
    agree: bool


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
    made = [path for pattern in _MADE_BY_DEMO for path in plan.out.glob(pattern)]
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


def train_models(plan: Plan, manifest: Manifest) -> dict[str, RunFolder]:
    """Train the models on the same tokens in the same order."""
    return {w: train(plan.recipe(w, manifest.vocab_size)) for w in plan.trained}


def score_models(plan: Plan, runs: dict[str, RunFolder]) -> dict[str, PerplexityResult]:
    """Perplexity of the trained models on the validation text."""
    scores: dict[str, PerplexityResult] = {}
    for wiring, run in runs.items():
        notes.print(f"scoring the {wiring} model")
        scores[wiring] = perplexity(run.model, plan.data, batch_size=8)
    return scores


def compare_tokens(plan: Plan, model: Path) -> Agreement:
    """Whether two processes choose the tokens that one chooses."""
    prompt = open_split(plan.data, "validation").tokens[:24].tolist()
    chosen = [_chosen(model, prompt, devices) for devices in (1, DEVICES)]
    return Agreement(tokens=len(chosen[0]), agree=chosen[0] == chosen[1])


def _chosen(model: Path, prompt: list[int], devices: int) -> list[int]:
    steps: list[Step] = []
    request = Request(
        directory=model,
        prompts=[prompt],
        max_new_tokens=32,
        sampling=Sampling(),
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
