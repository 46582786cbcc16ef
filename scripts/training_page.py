"""The table of docs/training.md, from docs/results/training/speed.json."""

import json

import markers
import recording
from krakenlm.spread import Spread

PAGE = recording.DOCS / "training.md"
SPEED = recording.RESULTS / "training" / "speed.json"
_MODELS = {
    "kraken": "125M 4-way Kraken",
    "loop": "the same, sub-layer by sub-layer",
    "standard": "124M standard model",
}


def speed_table() -> str:
    """A row a model, and the ratios taken within rounds."""
    found = json.loads(SPEED.read_text(encoding="utf-8"))
    rows = [
        (
            label,
            f"{1e3 * found['models'][name]['median_seconds']:.0f}",
            f"{found['models'][name]['tokens_per_second']:.0f}",
            f"{found['models'][name]['bytes_kept_for_backward'] / 2**20:.0f}",
        )
        for name, label in _MODELS.items()
    ]
    headings = ("model", "forward and backward, ms", "tokens/s", "kept for backward, MiB")
    setup, environment = found["setup"], found["environment"]
    over_loop, over_standard = (
        Spread(**found[key]).text(2, "x")
        for key in ("speedup_over_loop", "tokens_per_second_over_standard")
    )
    below = (
        f"\nOver the loop {over_loop}; tokens per second over the "
        f"standard model's {over_standard}; bytes kept over the "
        f"loop's {found['bytes_kept_over_loop']:.2f}x. Batches of {setup['batch_size']} x "
        f"{setup['tokens']} tokens, {setup['dtype']}, {setup['rounds']} rounds, "
        f"{environment['machine']}, {environment['cores']} cores.\n"
    )
    return markers.markdown(headings, rows, numbers=True) + below


TABLES = {"speed": speed_table}
