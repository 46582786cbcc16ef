"""``krakenlm generate`` as one rank of many that torchrun started."""

import json
import subprocess
import sys

import pytest

import tiny

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
