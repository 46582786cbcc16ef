"""The table of docs/training.md, from docs/results/training/speed.json."""

import json

import markers
import recording
from krakenlm.spread import Spread

PAGE = recording.DOCS / "training.md"
SPEED = recording.RESULTS / "training" / "speed.json"
_MODELS = {
    "standard": "124M standard model",
    "kraken": "125M 4-way Kraken",
    "loop": "the same, sub-layer by sub-layer",
    "shared": "124M shared, 4-way",
    "lagged": "124M lagged",
    "lagged-layer": "124M lagged-layer",
}


def speed_table() -> str:
    """A row a model, and the ratios taken within rounds."""
    found = json.loads(SPEED.read_text(encoding="utf-8"))
    rows = [
        (
            label,
            f"{1e3 * found['models'][name]['median_seconds']:.0f}",
            f"{found['models'][name]['tokens_per_second']:.0f}",
            Spread(**found["models"][name]["tokens_per_second_over_standard"]).text(2, "x"),
            f"{found['models'][name]['bytes_kept_for_backward'] / 2**20:.0f}",
        )
        for name, label in _MODELS.items()
    ]
    headings = (
        *("model", "forward and backward, ms", "tokens/s", "tokens/s over standard"),
        "kept for backward, MiB",
    )
    setup, environment = found["setup"], found["environment"]
    over_loop = Spread(**found["speedup_over_loop"]).text(2, "x")
    below = (
        f"\nKraken over the loop {over_loop}; bytes kept over the loop's "
        f"{found['bytes_kept_over_loop']:.2f}x. Batches of {setup['batch_size']} x "
        f"{setup['tokens']} tokens, {setup['dtype']}, {setup['rounds']} rounds, "
        f"{environment['machine']}, {environment['cores']} cores.\n"
    )
    return markers.markdown(headings, rows, numbers=True) + below


TABLES = {"speed": speed_table}
