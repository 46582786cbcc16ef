"""Write what the recipes' heads say of tokens, arithmetic and time, and the dataset's name.

A test compares the committed heads with what this script makes. Times are estimates: the
arithmetic of a run over what the named hardware is assumed to reach.

    python scripts/recipe_heads.py
"""

import re
from dataclasses import dataclass
from pathlib import Path

from krakenlm.config import count_parameters, training_flops_per_token
from krakenlm.train.meter import peak_flops
from krakenlm.train.recipe import Recipe, read_recipe

FOLDER = Path(__file__).resolve().parents[1] / "recipes"
# OpenWebText as Parquet files; ``openwebtext`` itself is a script, which datasets does not run.
DATASET = "vietgpt/openwebtext_en"
# What the GPT-2 tokenizer, padded, and the small recipes' own tokenizer have.
VOCABULARY = 4096
# What a short run of recipes/small-cpu-gpt2.toml reached on two cores of an AMD EPYC in bfloat16
# (5,800 tokens a second) while other programs ran beside it.
TWO_CORES_FLOPS = 140e9
# What the runs of docs/results/parity reached on one core of the same machine in float32, with
# another run on the other core.
ONE_CORE_FLOPS = 55e9


@dataclass(frozen=True)
class Hardware:
    """What a time is estimated for, and what it is assumed to reach in FLOPs a second."""

    name: str
    flops: float
    assumed: str


def _gpus(count: int, name: str, mfu: float) -> Hardware:
    peak = peak_flops(f"NVIDIA {name}")
    assert peak is not None
    assumed = f"at an assumed MFU of {mfu:.0%}"
    return Hardware(f"{count} {name}", count * peak * mfu, assumed)


LARGE = [_gpus(8, "A100", 0.4), _gpus(8, "H100", 0.4)]
SMALL = [_gpus(1, "A100", 0.25), _gpus(1, "H100", 0.25)]
# Large bfloat16 products reach 0.8 of an H100's peak, and whole models of billions of parameters
# about 0.4. Half of that, because these are 240 to 1,536 wide: much of a step is norms, sums and
# the loss over the vocabulary, which wait for memory. Gaps between steps do not count, since runs
# side by side fill each other's.
PARITY_GPU = [_gpus(1, "H100", 0.2)]
CPU = [Hardware("2 CPU cores", TWO_CORES_FLOPS, f"at {TWO_CORES_FLOPS / 1e9:.0f} GFLOP/s")]
ONE_CORE = [Hardware("1 CPU core", ONE_CORE_FLOPS, f"at {ONE_CORE_FLOPS / 1e9:.0f} GFLOP/s")]


def hardware_of(name: str) -> list[Hardware]:
    """What a recipe of this name is meant for."""
    if name in ("parity-cpu", "parity-long"):
        return ONE_CORE
    if name.startswith(("small-cpu", "example")):
        return CPU
    if name == "parity-gpu":
        return PARITY_GPU
    return SMALL if name.startswith("small-gpu") else LARGE


def head(name: str, recipe: Recipe) -> dict[str, str]:
    """The computed lines of a recipe's head, by the word that each begins with."""
    settings = recipe.training
    length = settings.sequence_length or recipe.model.max_position_embeddings
    tokens = settings.steps * settings.sequences_per_step * length
    flops = training_flops_per_token(recipe.model, length)
    times = [(h, tokens * flops / h.flops) for h in hardware_of(name)]
    spans = ", ".join(f"{_span(seconds)} on {h.name}" for h, seconds in times)
    return {
        "Tokens": f"{settings.steps:,} steps x {settings.sequences_per_step} sequences x "
        f"{length:,} tokens = {_short(tokens)}.",
        "Arithmetic": f"{count_parameters(recipe.model):,} parameters, {flops:.3g} FLOPs a token "
        f"(6 N + attention), {tokens * flops:.3g} in all.",
        "Time": f"about {spans}, {times[0][0].assumed}: an estimate.",
    }


def filled(text: str, name: str, recipe: Recipe) -> str:
    """The recipe's text with the computed lines made anew.

    Raises:
        AssertionError: the head lacks one of them.
    """
    for word, line in head(name, recipe).items():
        text, found = re.subn(rf"^# {word}: .*$", f"# {word}: {line}", text, flags=re.MULTILINE)
        assert found == 1, f"{name} has {found} lines that begin with '# {word}: '"
    return re.sub(r"^(#   krakenlm prepare --dataset) \S+", rf"\1 {DATASET}", text, flags=re.M)


def load(path: Path) -> Recipe:
    """A recipe as it stands, with the vocabulary that its head asks for."""
    return read_recipe(path, lambda data: VOCABULARY)


def _span(seconds: float) -> str:
    if seconds < 5400:
        minutes = max(1, round(seconds / 60))
        return f"{minutes} minute{'s' if minutes > 1 else ''}"
    return f"{seconds / 3600:.0f} hours"


def _short(tokens: int) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M")):
        if tokens >= size:
            return f"{tokens / size:.1f}{unit}"
    return f"{tokens:,}"


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.toml")):
        old = path.read_text(encoding="utf-8")
        new = filled(old, path.stem, load(path))
        path.write_text(new, encoding="utf-8")
        print(f"{path.name}: {'rewritten' if new != old else 'current'}")
