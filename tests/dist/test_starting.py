"""What the engine's processes import: starting takes longer than a short answer."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

pytestmark = pytest.mark.dist

# None of them is needed to run a model. The last two come unasked where PyTorch thinks of
# compiling, and take a second; what keeps them away is in model/layers.py and engine/tape.py.
NEEDLESS = {
    *("transformers", "sklearn", "scipy", "accelerate", "datasets", "pandas", "lm_eval"),
    *("matplotlib", "jinja2", "pygments", "torch._dynamo", "sympy"),
}
# The engine's path from end to end, by processes that start one after the other.
COMMANDS = """
from krakenlm.cli.main import main
from krakenlm.config import sizes

if __name__ == "__main__":
    shape = {"num_hidden_layers": 2, "hidden_size": 32, "num_heads": 4}
    size = sizes.Size(names=("tiny",), max_position_embeddings=32, **shape)
    sizes.SIZES = (*sizes.SIZES, size)
    for command in (
        "generate model --chat --prompt Line --max-new-tokens 9 --devices 2 --stop nothing",
        "bench latency --size tiny --wirings standard,kraken --kraken keep-width --input-len 8"
        " --output-len 3 --num-iters 2 --num-iters-warmup 0",
        "bench allreduce --min-bytes 64 --max-bytes 64 --num-iters 2",
    ):
        main(command.split())
"""
LAUNCHES = 3


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Counter[str]:
    """Every module that the commands import, and in how many processes."""
    folder = tmp_path_factory.mktemp("starting")
    shutil.copytree(tiny_model, folder / "model")
    (folder / "model/chat_template.jinja").write_text("{{ messages[0].content }}")
    script = folder / "commands.py"
    script.write_text(COMMANDS)
    ran = subprocess.run(
        [sys.executable, "-X", "importtime", script],
        capture_output=True,
        text=True,
        cwd=folder,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    return Counter(re.findall(r"import time: .*\| +(\S+)\n", ran.stderr))


def test_the_engine_loads_torch_and_tokenizers_and_no_other_large_library(imported):
    assert {"torch", "tokenizers", "krakenlm.engine.engine", "krakenlm.bench.runner"} <= {*imported}
    needless = NEEDLESS & imported.keys()
    assert not needless, "python -X importtime says who imports them"


def test_ranks_share_what_one_process_has_imported(imported):
    assert imported["torch"] == 1 + LAUNCHES
