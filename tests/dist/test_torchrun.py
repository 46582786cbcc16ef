"""``krakenlm generate`` as one rank of many that torchrun started."""

import subprocess
import sys

import pytest

from krakenlm.parallel.generation import Ranks
from krakenlm.parallel.texts import print_answer

pytestmark = pytest.mark.dist


def test_two_ranks_of_torchrun_print_what_one_process_prints(tiny_model, capsys):
    print_answer(tiny_model, "the", ranks=Ranks(1), show_stats=False, max_new_tokens=8)
    alone = capsys.readouterr().out
    assert alone.startswith("the")
    torchrun = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "krakenlm"]
    arguments = ["generate", str(tiny_model), "--prompt", "the", "--max-new-tokens", "8"]
    command = [sys.executable, "-m", *torchrun, *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert run.stdout == alone
