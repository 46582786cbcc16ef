"""Adapt SmolLM2 to late sums, many layers and few, in several wirings, and keep what came out.

    make smollm2
    nice python scripts/publish_adapt.py --model runs/smollm2 \\
        --text openwebtext.jsonl.gz enwiki.jsonl.gz --other books.jsonl.gz --superglue DIR

Each case is one ``krakenlm adapt``, in the folder that ``--work`` names; an interrupted one goes on
from its last checkpoint, a finished one is kept under docs/results/adapt and not run again. All of
them take many hours on two cores: ``--only`` takes some. ``--draw`` runs nothing.
"""

import argparse
import shutil
import sys
from functools import partial
from pathlib import Path
from typing import NamedTuple

import adapt_page as page
import recording
from krakenlm.files import write_json

LINKS = ("gbps=1,latency_us=50", "gbps=0.1,latency_us=100")


class Case(NamedTuple):
    """One adaptation.

    Attributes:
        wiring: to which.
        late: which layers, as ``--late`` takes them.
        tokens: that are learned from.
        sublayers: N, or several to draw from.
    """

    wiring: str
    late: str
    tokens: int
    sublayers: str = "3"

    @property
    def name(self) -> str:
        """As its file is called."""
        drawn = "" if self.sublayers.isdigit() else f"-n{self.sublayers.replace(',', '')}"
        return f"{self.wiring}-{self.late}{drawn}-{self.tokens / 1e6:g}M"


def cases(long: int, short: int) -> list[Case]:
    """All of them, those first that say most.

    Args:
        long: tokens of the models that are to be used.
        short: tokens of those that compare wirings.
    """
    used = [Case("shared", late, long) for late in ("15-29", "22", "all")]
    compared = [
        Case(wiring, late, short)
        for late in ("15-29", "22", "all", "8")
        for wiring in ("shared", "lagged", "ladder")
    ]
    return [*used, *compared, Case("shared", "all", long, "1,3")]


def publish(options: argparse.Namespace) -> None:
    """Prepare the texts, run what is missing, keep each result as it ends."""
    work = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    _link(work / "smollm2", options.model.resolve())
    for name, texts in (("data", options.text), ("other", options.other)):
        if not (work / name).is_dir():
            given = [str(text.resolve()) for text in texts]
            _krakenlm(["prepare", "--text", *given, "--tokenizer", "smollm2", name], work)
    for case in cases(options.tokens, options.short):
        kept = page.RESULTS / f"{case.name}.json"
        if kept.is_file() or (options.only and case.name not in options.only):
            continue
        _krakenlm(_adapt(case, options), work)
        kept.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(work / case.name / "adapt.json", kept)
        history = work / case.name / "run" / "history.json"
        shutil.copyfile(history, kept.with_name(f"{case.name}-history.json"))
    write_json(page.RESULTS / "cases.json", {"texts": [t.name for t in options.text]})


def _adapt(case: Case, options: argparse.Namespace) -> list[str]:
    """The arguments of ``krakenlm`` for a case; models that are to be used are measured further."""
    arguments = [
        *("adapt", "smollm2", "--data", "data", "--out", case.name, "--also", "other"),
        *("--wiring", case.wiring, "--sublayers", case.sublayers, "--late", case.late),
        *("--tokens", str(case.tokens), "--sample", options.sample),
    ]
    for change in options.set:
        arguments += ["--set", change]
    if case.tokens == options.tokens:
        for link in LINKS:
            arguments += ["--link", link]
        if options.superglue is not None:
            arguments += ["--superglue", str(options.superglue.resolve())]
    return arguments


def _link(path: Path, target: Path) -> None:
    if not path.exists():
        path.symlink_to(target)


def _krakenlm(arguments: list[str], folder: Path) -> None:
    print("krakenlm", *arguments, flush=True)
    ended = recording.run([*recording.KRAKENLM, *arguments], folder=folder)
    print(ended.output, end="", flush=True)
    if ended.code:
        sys.exit(f"krakenlm {arguments[0]} ended with {ended.code}, see above")


def _options() -> argparse.ArgumentParser:
    parser = recording.option_parser(__doc__)
    add = partial(parser.add_argument, metavar="...")
    add("--model", type=Path, help="SmolLM2's folder, from `make smollm2`")
    add("--text", type=Path, nargs="+", default=[], help="what to learn from")
    add("--other", type=Path, nargs="+", default=[], help="other text, to compare perplexities on")
    add("--superglue", type=Path, help="folder of SuperGLUE's files")
    add("--tokens", type=int, default=2_000_000, help="for models that are to be used")
    add("--short", type=int, default=200_000, help="for the comparison of wirings")
    add("--sample", default="16x512", help="held-out text, as `krakenlm adapt` takes it")
    add("--set", action="append", default=[], help="a change of every run's recipe")
    add("--only", nargs="+", default=[], help="cases by name")
    add("--work", type=Path, default=recording.ROOT / "runs" / "adapt")
    return parser


if __name__ == "__main__":
    recording.measure_and_draw(
        _options(),
        publish,
        pages=[page.PAGE],
        tables=page.TABLES,
        needed=("model", "text", "other"),
        pictures=lambda _: page.draw(),
    )
