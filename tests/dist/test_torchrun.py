"""``krakenlm generate`` as one rank of many that torchrun started."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.dist


def generate(arguments: list[str], launcher: list[str]) -> str:
    command = [sys.executable, "-m", *launcher, "generate", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=300).stdout


def test_torchrun_prints_what_our_own_processes_print(tiny_model):
    arguments = [str(tiny_model), "--prompt", "the", "--max-new-tokens", "8"]
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "krakenlm"]
    own = generate([*arguments, "--devices", "2"], ["krakenlm"])
    assert own.startswith("the")
    assert generate(arguments, torchrun) == own
