"""The wheel that the repository gives installs in an empty environment, and works there.

It fetches what krakenlm depends on, which takes minutes: only `make test-reliability` runs it.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import tiny

pytestmark = [pytest.mark.reliability, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]


def run(*command: object, cwd: Path, **environment: str) -> str:
    clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    ended = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        env={**clean, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("wheel")
    # Of what git knows: a build folder from another day would be packed as well.
    source = out / "source"
    source.mkdir()
    files = run("git", "ls-files", "-z", cwd=ROOT).split("\0")
    kept = [name for name in files if name and (ROOT / name).is_file()]
    subprocess.run(["cp", "--parents", *kept, str(source)], cwd=ROOT, check=True)
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", out, source, cwd=out)
    (found,) = out.glob("*.whl")
    return found


def test_it_works_in_an_empty_environment(wheel, tmp_path, figure):
    begun = time.monotonic()
    run(sys.executable, "-m", "venv", tmp_path / "venv", cwd=tmp_path)
    binaries = tmp_path / "venv" / "bin"
    lock = ROOT / "constraints" / "package.txt"
    run(binaries / "python", "-m", "pip", "install", "-q", "-c", lock, wheel, cwd=tmp_path)
    installed = time.monotonic() - begun
    where = run(
        binaries / "python", "-c", "import krakenlm; print(krakenlm.__file__)", cwd=tmp_path
    )
    assert where.startswith(str(tmp_path))

    (tmp_path / "text.txt").write_text(tiny.text(), encoding="utf-8")
    recipe = tiny.recipe_text(Path("data"), Path("run"), steps=2)
    (tmp_path / "recipe.toml").write_text(recipe, encoding="utf-8")
    krakenlm = binaries / "krakenlm"
    version = wheel.name.split("-")[1]
    assert version in run(krakenlm, "--version", cwd=tmp_path)
    run(krakenlm, "prepare", "data", "--text", "text.txt", "--tokenizer", "train:300", cwd=tmp_path)
    run(krakenlm, "train", "recipe.toml", cwd=tmp_path)
    answer = ["generate", "run/model", "--prompt", "Line", "--max-new-tokens", "8"]
    alone = run(krakenlm, *answer, cwd=tmp_path)
    assert alone.startswith("Line")
    assert run(krakenlm, *answer, "--devices", "2", cwd=tmp_path) == alone
    run(krakenlm, "perplexity", "run/model", "text.txt", cwd=tmp_path)
    planned = run(krakenlm, "plan", "1.3B", "--device", "a100-80gb", cwd=tmp_path)
    assert "kraken" in planned
    figure(
        "the wheel in an empty environment",
        f"installed in {installed:.0f} s; prepare, train, generate on 1 and 2 ranks, "
        "perplexity and plan work",
        "a smoke test passes",
    )
