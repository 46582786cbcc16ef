"""Measure what the page "What Kraken buys you" shows, and draw its pictures and tables.

    python scripts/run_bench.py [SCENARIO...] [--runs 3] [--vllm-python .vllm/bin/python]
    python scripts/run_bench.py --draw

Each scenario is one ``krakenlm bench`` command, run several times; every run's JSON is kept under
docs/results/latency/SCENARIO, whatever it says, beside the command. The scenarios over a network
need root, for ``scripts/netns_bench.sh``. With the python of an environment with vLLM, ``vllm bench
latency`` and our own benchmark take turns as well. ``--draw`` measures nothing and makes pictures
and tables anew from the JSON files alone. Run nothing else on the machine meanwhile.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import latency_page
import recording
from krakenlm.files import whole_directory
from krakenlm.serving.machine import QUIET, VLLM, cpu_settings
from latency_page import VLLM_TOKENS, vllm_file


class Scenario(NamedTuple):
    """One setting: the rate of a real veth link between the ranks, or none, and the command."""

    rate: str | None
    command: str

    def __str__(self) -> str:
        return f"scripts/netns_bench.sh {self.rate} {self.command}" if self.rate else self.command


MODELS = (
    "--wirings standard,parallel,ladder,kraken,shared,shared/2,shared/4,lagged,lagged-layer "
    "--kraken published,keep-width"
)


def latency(rest: str, ranks: str = "--devices 2", models: str = MODELS) -> str:
    """The command that times models; by default one in each wiring, and variants of two."""
    return (
        f"krakenlm bench latency --size 124M {ranks} --dtype bfloat16 --input-len 512 "
        f"--output-len 16 {models} {rest}"
    )


CHUNKED = (
    "--wirings standard,parallel,ladder,kraken --kraken published,keep-width,hardware-friendly "
    "--prefill-chunks 1,2 --breakdown"
)


NETNS = recording.ROOT / "scripts" / "netns_bench.sh"
# Namespaces have no name service, and gloo says so on every start.
NO_GLOO_WARNINGS = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
BESIDE_VLLM = Scenario(
    None,
    "krakenlm bench latency --size 124M --wirings standard,kraken "
    "--kraken published,keep-width --devices 2 --dtype bfloat16 --input-len 512 --output-len 16 "
    "--num-iters 8",
)
# The same shape, as Transformers' and vLLM's own model; weights are random, so that no network and
# no tokenizer is needed.
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
VLLM_LATENCY = (
    "bench latency --model gpt2-124M --load-format dummy --skip-tokenizer-init "
    "--disable-detokenize --dtype bfloat16 --tensor-parallel-size 2 --batch-size 1 "
    "--input-len 512 --max-model-len 528 --max-num-batched-tokens 528 --max-num-seqs 1 "
    "--num-iters 8 --num-iters-warmup 3"
)
VLLM_VERSIONS = (
    "import json; from importlib.metadata import version; "
    "print(json.dumps({name: version(name) for name in ('vllm', 'torch', 'transformers')}))"
)
EIGHT_ROUNDS = "--num-iters 8 --num-iters-warmup 2"
SCENARIOS = {
    "one-host": Scenario(None, latency(f"--breakdown {EIGHT_ROUNDS}")),
    "veth-1gbit": Scenario("1gbit", latency(EIGHT_ROUNDS)),
    "veth-1gbit-gloo": Scenario("1gbit", latency(f"--transport process-group {EIGHT_ROUNDS}")),
    "veth-100mbit": Scenario("100mbit", latency("--num-iters 4 --num-iters-warmup 1")),
    "emulated-4-ranks": Scenario(
        None,
        latency(
            f"{EIGHT_ROUNDS} --link gbps=1,latency_us=50",
            ranks="--devices 4 --emulate-peers --threads 1",
        ),
    ),
    "veth-1gbit-chunks": Scenario("1gbit", latency(EIGHT_ROUNDS, models=CHUNKED)),
    "veth-100mbit-chunks": Scenario(
        "100mbit", latency("--num-iters 4 --num-iters-warmup 1", models=CHUNKED)
    ),
    "emulated-10gbit": Scenario(
        None, latency(f"{EIGHT_ROUNDS} --link gbps=10,latency_us=30", models=CHUNKED)
    ),
    "allreduce-one-host": Scenario(None, "krakenlm bench allreduce --devices 2 --num-iters 40"),
    "allreduce-1gbit": Scenario("1gbit", "krakenlm bench allreduce --devices 2 --num-iters 40"),
}


def measure(options: argparse.Namespace) -> None:
    """Measure the scenarios named, or all; vLLM's first where there is one."""
    if options.vllm_python is not None:
        measure_beside_vllm(options.vllm_python, options.runs)
    records: dict[str, recording.Record] = {}
    with tempfile.TemporaryDirectory() as folder:
        for run in range(1, options.runs + 1):
            for name in options.scenarios or SCENARIOS:
                if SCENARIOS[name].rate and (os.geteuid() != 0 or not shutil.which("tc")):
                    print(f"{name}: needs root and tc: left out", file=sys.stderr)
                    continue
                if name not in records:
                    records[name] = recording.Record(latency_page.RESULTS / name, Path(folder))
                measure_scenario(records[name], SCENARIOS[name], run)


def measure_scenario(record: recording.Record, scenario: Scenario, run: int) -> None:
    """One run; the first replaces all runs of another time, since a table shows what stays."""
    written = f"run-{run}.json"
    _, *arguments = scenario.command.split()
    command = [*recording.KRAKENLM, *arguments, "--output-json", written]
    if scenario.rate:
        command = [str(NETNS), scenario.rate, *command]
    record.run(f"run {run}", command, str(scenario), NO_GLOO_WARNINGS)
    if run == 1:
        for earlier in record.results.glob("run-*.json"):
            earlier.unlink()
    shutil.move(record.folder / written, record.results / written)
    (record.results / "command.txt").write_text(f"{scenario}\n", encoding="utf-8")


def measure_beside_vllm(python: Path, runs: int) -> None:
    """vLLM's own benchmark for one token and for all, then ours, and so on, on one host.

    They take turns, since the speed of a machine drifts; none is there while another measures.
    """
    python = python.absolute()  # not resolved: an environment's python is a link
    target = latency_page.RESULTS / "beside-vllm"
    with tempfile.TemporaryDirectory() as name, whole_directory(target, replace=True) as kept:
        folder = Path(name)
        (folder / "gpt2-124M").mkdir()
        (folder / "gpt2-124M" / "config.json").write_text(json.dumps(GPT2), encoding="utf-8")
        versions = vllm_versions(python, folder / "versions.json")
        record = recording.Record(kept, folder, vllm=versions)
        for run in range(1, runs + 1):
            for tokens in VLLM_TOKENS:
                measure_vllm(record, python, run, tokens)
            measure_scenario(record, BESIDE_VLLM, run)


def vllm_versions(python: Path, file: Path) -> dict[str, str]:
    """vLLM's version and those of what it depends on, in an environment of its own."""
    if not python.is_file() or recording.run([python, "-c", VLLM_VERSIONS], log=file).code:
        sys.exit(f"{python} has no vLLM: give .vllm/bin/python, which `make vllm-env` makes")
    versions: dict[str, str] = json.loads(file.read_text("utf-8"))
    return versions


def measure_vllm(record: recording.Record, python: Path, run: int, tokens: int) -> None:
    """One ``vllm bench latency``; what it writes is kept as it is."""
    written = vllm_file(run, tokens)
    arguments = f"{VLLM_LATENCY} --output-len {tokens} --output-json {written}"
    command = [python, *VLLM[1:], *arguments.split()]
    settings = {**cpu_settings(2), **QUIET, "HF_HUB_OFFLINE": "1"}
    record.run(f"run {run}, vLLM, output-len {tokens}", command, f"vllm {arguments}", settings)
    shutil.move(record.folder / written, record.results / written)


if __name__ == "__main__":
    parser = recording.option_parser(__doc__)
    recording.add_scenarios(parser, SCENARIOS)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--vllm-python", type=Path, help="python of an environment with vLLM")
    recording.measure_and_draw(
        parser,
        measure,
        pages=[latency_page.PAGE],
        tables=latency_page.TABLES,
        pictures=lambda _: latency_page.draw_pictures(),
    )
