"""The whole demo, in order."""

from collections.abc import Sequence
from pathlib import Path

from krakenlm.console import notes
from krakenlm.demo.own_text import python_installation_text
from krakenlm.demo.plan import Plan
from krakenlm.demo.report import Findings, show, write_report
from krakenlm.demo.steps import (
    claim_folder,
    make_tokens,
    score_models,
    time_first_token,
    train_models,
    write_sample,
)


def run_demo(plan: Plan, texts: Sequence[Path]) -> Path:
    """Run every step that is not done yet; return the report's page.

    Args:
        plan: sizes and the folder.
        texts: files to learn from; the machine's own Python installation where empty.
    """
    if not texts:
        texts = python_installation_text()
        notes.print(f"text: {len(texts)} files of this machine's Python installation")
    claim_folder(plan, texts)
    notes.rule("1/5 text to tokens", align="left")
    manifest = make_tokens(plan, texts)
    notes.rule("2/5 training Kraken and its standard twin", align="left")
    runs = train_models(plan, manifest)
    notes.rule("3/5 perplexity", align="left")
    scores = score_models(plan, runs)
    notes.rule("4/5 generating on two processes", align="left")
    sample = write_sample(plan, runs["kraken"].model)
    notes.rule("5/5 timing the first token", align="left")
    latency, timelines = time_first_token(plan, manifest)
    findings = Findings(
        manifest=manifest,
        runs=runs,
        scores=scores,
        sample=sample,
        latency=latency,
        timelines=timelines,
    )
    page = write_report(findings, plan.out)
    show(findings)
    return page
