"""How fast does each wiring train beside the standard model, and Kraken beside a loop?

Forward and backward pass of the 125M 4-way Kraken, of the same model as a loop over its sub-layers
(tests/sublayer_loop.py), and of the 124M shape as the standard model and in the wirings that share
its weights, in turn, on random tokens; medians with their spread, and the bytes that each keeps for
its backward pass.

    python scripts/training_speed.py --output-json docs/results/training/speed.json
    python scripts/training_speed.py --draw

Then the table of docs/training.md is made from that file; ``--draw`` makes it without measuring.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import recording
import training_page

sys.path.insert(0, str(recording.ROOT / "tests"))

from krakenlm.config import ModelConfig, derive, model_config
from krakenlm.files import write_json
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.spread import Spread
from sublayer_loop import SubLayerLoop, kept_bytes

SETUP = ("batch_size", "tokens", "rounds", "layers", "device", "dtype")


def measure(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    device = torch.device(options.device)
    dtype = getattr(torch, options.dtype)
    torch.manual_seed(0)
    fewer = {"num_hidden_layers": options.layers} if options.layers else {}
    kraken, standard = (model_config(name, **fewer) for name in ("kraken-125M-4way", "124M"))
    stacked = _model(kraken).to(device)
    models: dict[str, nn.Module] = {
        "standard": _model(standard).to(device),
        "kraken": stacked,
        "loop": SubLayerLoop(kraken).to(device).take(stacked.state_dict()),
        "shared": _model(derive(standard, 4, rule="shared")).to(device),
        "lagged": _model(standard.replace(wiring="lagged")).to(device),
        "lagged-layer": _model(standard.replace(wiring="lagged-layer")).to(device),
    }
    ids = torch.randint(kraken.vocab_size, (options.batch_size, options.tokens), device=device)
    loss_of = partial(_loss, device=device.type, dtype=dtype)
    kept = {name: kept_bytes(model, ids, loss_of) for name, model in models.items()}
    steps = {name: partial(_step, model, ids, loss_of) for name, model in models.items()}
    seconds = _interleaved(steps, options.rounds, device)
    result = _summary(seconds, kept, ids.numel())
    result["setup"] = {name: getattr(options, name) for name in SETUP}
    result |= recording.environment(torch.cuda.get_device_name() if device.type == "cuda" else "")
    print(json.dumps(result, indent=2))
    if options.output_json is not None:
        write_json(options.output_json, result)


def _options() -> argparse.ArgumentParser:
    parser = recording.option_parser(__doc__)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--layers", type=int, default=0, help="of each model; 0 is all of them")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="bfloat16", help="of products; weights are float32")
    parser.add_argument("--output-json", type=Path)
    return parser


def _model(config: ModelConfig) -> KrakenForCausalLM:
    return KrakenForCausalLM(KrakenConfig.from_model_config(config, use_cache=False))


def _loss(model: nn.Module, ids: Tensor, *, device: str, dtype: torch.dtype) -> Tensor:
    with torch.autocast(device, dtype, enabled=dtype != torch.float32):
        return model(ids) if isinstance(model, SubLayerLoop) else model(ids, labels=ids).loss


def _step(model: nn.Module, ids: Tensor, loss_of: Callable[[nn.Module, Tensor], Tensor]) -> None:
    model.zero_grad(set_to_none=True)
    loss_of(model, ids).backward()


def _interleaved(
    steps: dict[str, Callable[[], None]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each model in each round; the first two rounds warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for each in range(rounds + 2):
        for name, step in steps.items():
            _wait(device)
            begun = time.perf_counter()
            step()
            _wait(device)
            if each >= 2:
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def _summary(
    seconds: dict[str, list[float]], kept: dict[str, int], tokens: int
) -> dict[str, object]:
    """Medians, and ratios taken within each round."""

    def ratio(slow: str, quick: str) -> dict[str, float]:
        return vars(Spread.of([a / b for a, b in zip(seconds[slow], seconds[quick], strict=True)]))

    return {
        "schema_version": 2,
        "models": {
            name: {
                "median_seconds": statistics.median(found),
                "tokens_per_second": tokens / statistics.median(found),
                "tokens_per_second_over_standard": ratio("standard", name),
                "bytes_kept_for_backward": kept[name],
            }
            for name, found in seconds.items()
        },
        "speedup_over_loop": ratio("loop", "kraken"),
        "bytes_kept_over_loop": kept["kraken"] / kept["loop"],
    }


if __name__ == "__main__":
    recording.measure_and_draw(
        _options(), measure, pages=[training_page.PAGE], tables=training_page.TABLES
    )
