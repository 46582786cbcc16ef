"""`krakenlm eval --backend vllm` scores as Transformers does."""

import json
import os
import subprocess
import sys

import offline
import pytest
from served import save_model

import superglue_files

TASKS = ("BoolQ", "COPA", "WiC")


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    made = tmp_path_factory.mktemp("scored")
    save_model(made / "model", tokenizer, context=512, wiring="shared")
    superglue_files.write(made / "data")
    return made


def scored(folder, *options: str) -> dict:
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "krakenlm", "eval", "model", "--data-dir", "data"]
    command += ["--tasks", ",".join(TASKS), "--json", report.name, *options]
    run = subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, **offline.SETTINGS, "TORCH_COMPILE_DISABLE": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-5000:]
    assert "SuperGLUE, zero-shot" in run.stdout
    assert "INFO" not in run.stdout  # vLLM's own words
    return json.loads(report.read_text())


def test_scores_are_those_of_transformers(folder):
    chosen = ("--sublayers", "4")  # and not the checkpoint's own two
    under_vllm = scored(folder, "--backend", "vllm", "--devices", "2", *chosen)
    assert (under_vllm["backend"], under_vllm["devices"]) == ("vllm", 2)
    assert under_vllm["dtype"] == "float32"
    with_transformers = scored(folder, *chosen)
    assert with_transformers["backend"] == "hf"
    assert under_vllm["sublayers"] == 4
    for key in ("parameters", "context", "dtype", "sublayers"):
        assert under_vllm[key] == with_transformers[key]
    for ours, theirs in zip(under_vllm["scores"], with_transformers["scores"], strict=True):
        assert ours["metrics"] == pytest.approx(theirs["metrics"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--backend", "vllm", "--devices", "3"), "2 sub-layers"),
        (("--backend", "vllm", "--device", "cpu"), "leave --device out"),
        (("--devices", "2"), "add --backend vllm"),
    ],
)
def test_options_that_do_not_go_together_are_refused(folder, options, said):
    with pytest.raises(AssertionError, match=said):
        scored(folder, *options)
