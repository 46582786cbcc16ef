"""What earlier versions wrote is read: tokens, checkpoints, models, runs, reports.

``scripts/keep_version.py`` keeps the files of a version before it is released.
"""

import json
import shutil
from pathlib import Path

import pytest

import tiny
from krakenlm.bench.results import LatencyReport
from krakenlm.data.tokens import open_split
from krakenlm.eval.report import EvalReport
from krakenlm.train.history import History

pytestmark = pytest.mark.usefixtures("own_signals")

VERSIONS = sorted(path for path in (Path(__file__).parent / "versions").iterdir() if path.is_dir())


@pytest.fixture(params=VERSIONS, ids=lambda path: path.name)
def kept(request, tmp_path, monkeypatch) -> Path:
    """A version's files, in a folder where commands may write, which is the current one."""
    folder = shutil.copytree(request.param, tmp_path / "kept")
    for path in (folder, *folder.rglob("*")):  # a checkout may let a group write
        path.chmod(path.stat().st_mode & ~0o022)
    monkeypatch.chdir(folder)
    return folder


def expected(kept: Path) -> dict:
    return json.loads((kept / "expected.json").read_text(encoding="utf-8"))


def test_tokens(kept):
    for split in ("train", "validation"):
        assert len(open_split(kept / "data", split).tokens) > 64  # its sums are compared


def test_a_model_answers_and_predicts_as_it_did(kept, capfd):
    before = expected(kept)
    outcome = tiny.call(
        capfd, "generate", "run/model", "--prompt", before["prompt"], "--max-new-tokens", 12
    )
    assert (outcome.code, outcome.out) == (0, before["answer"])
    assert tiny.call(capfd, "perplexity", "run/model", "text.txt", "--json", "new.json").code == 0
    loss = json.loads((kept / "new.json").read_text(encoding="utf-8"))["loss"]
    assert loss == pytest.approx(before["loss"], rel=1e-4)


def test_a_finished_run_is_left_alone_and_listed(kept, capfd):
    outcome = tiny.call(capfd, "train", "recipe.toml")
    assert outcome.code == 0
    assert "run: trained already, nothing to do" in outcome.err
    listed = tiny.call(capfd, "runs", "run")
    assert listed.code == 0 and "finished" in listed.out


def test_a_run_goes_on_from_its_checkpoint_to_the_same_end(kept, capfd, figure, request):
    before = History.load(kept / "run" / "history.json")
    shutil.rmtree(kept / "run" / "model")
    outcome = tiny.call(capfd, "train", "recipe.toml")
    assert outcome.code == 0, outcome.err
    assert "going on from checkpoint-4" in outcome.err
    after = History.load(kept / "run" / "history.json")
    assert after.step == before.step
    assert after.validation[-1].loss == pytest.approx(before.validation[-1].loss, rel=1e-4)
    figure(
        f"tokens, a checkpoint, a run, a model and reports of version {request.node.callspec.id}",
        "read; training goes on to the same loss",
        "read",
    )


def test_reports(kept):
    latency = LatencyReport.load(kept / "latency.json")
    assert [result.wiring for result in latency.results] == ["kraken"]
    assert latency.results[0].ttft_ms.median > 0
    evaluation = EvalReport.load(kept / "eval.json")
    assert [(score.task, score.examples) for score in evaluation.scores] == [("BoolQ", 2)]
