"""``krakenlm generate`` as one rank of many that torchrun started."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from safetensors.torch import load_file, save_file

import tiny
from ports import free_port

pytestmark = [pytest.mark.dist, pytest.mark.usefixtures("own_signals")]


def test_two_ranks_of_torchrun_print_what_one_process_prints(tiny_model, tmp_path, capfd):
    """Prompts of a file in two batches, one of whose answers ends at a stop text."""
    (tmp_path / "prompts.txt").write_text("the\nend of\nLine 1\n", encoding="utf-8")
    command = [
        *("generate", str(tiny_model), "--prompt-file", str(tmp_path / "prompts.txt")),
        *("--max-new-tokens", "8", "--batch-size", "2", "--json", "-"),
    ]
    answers = list(map(json.loads, tiny.call(capfd, *command).out.splitlines()))
    command += ["--stop", answers[0]["answer"][3:5]]
    alone = tiny.call(capfd, *command).out
    reasons = [json.loads(line)["finish_reason"] for line in alone.splitlines()]
    assert len(reasons) == 3 and reasons[0] == "stop"
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "krakenlm"]
    run = subprocess.run(
        [sys.executable, "-m", *torchrun, *command],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert run.stdout == alone


def both(*commands: list[str], **environment: str) -> list[subprocess.CompletedProcess[str]]:
    """One command a rank, as torchrun would start them on two machines."""
    of_all = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    started = [
        subprocess.Popen(
            [sys.executable, *command],
            env={**os.environ, **of_all, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank, command in enumerate(commands)
    ]
    ended = []
    for process in started:
        out, err = process.communicate(timeout=300)
        ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    return ended


def generate(model) -> list[str]:
    return ["-m", "krakenlm", "generate", str(model), "--prompt", "the", "--max-new-tokens", "2"]


@pytest.mark.parametrize("what", ["a weight", "the configuration"])
def test_ranks_with_different_models_are_refused(what, tiny_model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(tiny_model, other)
    if what == "a weight":
        weights = load_file(other / "model.safetensors")
        weights[next(iter(weights))] += 1
        save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    else:
        config = json.loads((other / "config.json").read_text())
        (other / "config.json").write_text(json.dumps({**config, "norm_eps": 0.1}))
    for ended in both(generate(tiny_model), generate(other)):
        assert ended.returncode == 2
        assert "rank 1 has " in ended.stderr and "copy one model to all machines" in ended.stderr
        assert ended.stdout == ""


def test_ranks_of_different_versions_are_refused(tiny_model):
    old = "from krakenlm.ranks import agreement; agreement.own_version = lambda: '0.0.9'; "
    run = "import sys; from krakenlm.__main__ import main; sys.argv[1:] = {!r}; sys.exit(main())"
    new = generate(tiny_model)
    for ended in both(new, ["-c", old + run.format(new[2:])]):
        assert ended.returncode == 2
        assert "krakenlm: rank 1 has 0.0.9 and rank 0 " in ended.stderr
        assert "install the same version everywhere" in ended.stderr
