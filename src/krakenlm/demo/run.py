"""The whole demo, in order."""

from collections.abc import Sequence
from pathlib import Path

from krakenlm.console import notes
from krakenlm.demo.own_text import python_installation_text
from krakenlm.demo.plan import RECOMMENDED, Plan
from krakenlm.demo.report import Findings, show, write_report
from krakenlm.demo.steps import (
    claim_folder,
    compare_tokens,
    make_tokens,
    score_models,
    train_models,
)
from krakenlm.demo.timing import time_links


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
    notes.rule(f"2/5 training {', '.join(plan.trained)}", align="left")
    runs = train_models(plan, manifest)
    notes.rule("3/5 perplexity", align="left")
    scores = score_models(plan, runs)
    notes.rule("4/5 one process against two", align="left")
    agreement = compare_tokens(plan, runs[RECOMMENDED].model)
    notes.rule("5/5 timing the first token", align="left")
    latencies, timelines = time_links(plan)
    findings = Findings(
        plan=plan,
        manifest=manifest,
        runs=runs,
        scores=scores,
        agreement=agreement,
        latencies=latencies,
        timelines=timelines,
    )
    page = write_report(findings, plan.out)
    show(findings)
    return page
