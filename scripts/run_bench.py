"""Measure what the page "What Kraken buys you" shows, and draw its pictures and tables.

    python scripts/run_bench.py [SCENARIO...] [--runs 3] [--vllm-python vllm-env/bin/python]
    python scripts/run_bench.py --draw

Each scenario is one ``krakenlm bench`` command, run several times; every run's JSON is kept under
docs/results/latency/SCENARIO, whatever it says, beside the command. The scenarios over a network
need root, for ``scripts/netns_bench.sh``. ``--draw`` measures nothing and makes pictures and tables
anew from the JSON files alone. Run nothing else on the machine meanwhile.
"""

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import latency_page
import markers

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "docs" / "results" / "latency"


class Scenario(NamedTuple):
    """One setting: the rate of a real veth link between the ranks, or none, and the command."""

    rate: str | None
    command: str

    def __str__(self) -> str:
        return f"scripts/netns_bench.sh {self.rate} {self.command}" if self.rate else self.command


def latency(rest: str, ranks: str = "--devices 2") -> str:
    """The command that times all models, with what a prefill of each consists of."""
    models = "--kraken published,keep-width,hardware-friendly --prefill-chunks 1,2"
    return (
        f"krakenlm bench latency --size 124M {ranks} --dtype bfloat16 --input-len 512 "
        f"--output-len 16 {models} --breakdown {rest}"
    )


NETNS = ROOT / "scripts" / "netns_bench.sh"
BESIDE_VLLM = Scenario(
    None,
    "krakenlm bench latency --size 124M --wirings standard,kraken "
    "--kraken published,keep-width --devices 2 --dtype bfloat16 --input-len 512 --output-len 16 "
    "--num-iters 8",
)
EIGHT_ROUNDS = "--num-iters 8 --num-iters-warmup 2"
SCENARIOS = {
    "one-host": Scenario(None, latency(EIGHT_ROUNDS)),
    "veth-1gbit": Scenario("1gbit", latency(EIGHT_ROUNDS)),
    "veth-1gbit-gloo": Scenario(
        "1gbit",
        "krakenlm bench latency --size 124M --wirings standard,parallel,ladder,kraken "
        "--kraken published,keep-width --devices 2 --dtype bfloat16 --input-len 512 "
        f"--output-len 16 --transport process-group {EIGHT_ROUNDS}",
    ),
    "veth-100mbit": Scenario("100mbit", latency("--num-iters 4 --num-iters-warmup 1")),
    "emulated-10gbit": Scenario(None, latency(f"{EIGHT_ROUNDS} --link gbps=10,latency_us=30")),
    "emulated-4-ranks": Scenario(
        None,
        latency(
            f"{EIGHT_ROUNDS} --link gbps=1,latency_us=50",
            ranks="--devices 4 --emulate-peers --threads 1",
        ),
    ),
    "allreduce-one-host": Scenario(None, "krakenlm bench allreduce --devices 2 --num-iters 40"),
    "allreduce-1gbit": Scenario("1gbit", "krakenlm bench allreduce --devices 2 --num-iters 40"),
}


def measure(name: str, run: int) -> None:
    """One run of one scenario."""
    scenario = SCENARIOS[name]
    output = (_folder(name, scenario) / f"run-{run}.json").relative_to(ROOT)
    command = [sys.executable, "-m", *scenario.command.split(), "--output-json", str(output)]
    if scenario.rate:
        command = [str(NETNS), scenario.rate, *command]
    print(f"{name}, run {run}", flush=True)
    # Namespaces have no name service, and gloo says so on every start.
    quiet = {**os.environ, "TORCH_CPP_LOG_LEVEL": "ERROR"}
    subprocess.run(command, check=True, env=quiet, cwd=ROOT)


def measure_beside_vllm(python: Path, bursts: int) -> None:
    """vLLM and this engine in turn, on one host."""
    folder = _folder("beside-vllm", BESIDE_VLLM).relative_to(ROOT)
    ours = f"{sys.executable} -m {BESIDE_VLLM.command} --output-json {folder}/run-{{burst}}.json"
    command = [
        python,
        ROOT / "scripts" / "vllm_reference.py",
        "--output-json",
        folder / "vllm.json",
    ]
    turns = ["--bursts", str(bursts), "--num-iters", "8", "--between", ours]
    print(f"beside-vllm, {bursts} runs", flush=True)
    subprocess.run([*map(str, command), *turns], check=True, cwd=ROOT)


def _folder(name: str, scenario: Scenario) -> Path:
    folder = RESULTS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "command.txt").write_text(f"{scenario}\n", encoding="utf-8")
    return folder


def main() -> None:
    """Measure the scenarios named, or all, and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("scenarios", nargs="*", metavar="SCENARIO", help=", ".join(SCENARIOS))
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--vllm-python", type=Path, help="python of an environment with vLLM")
    parser.add_argument("--draw", action="store_true", help="only draw what is there")
    arguments = parser.parse_args()
    unknown = set(arguments.scenarios) - SCENARIOS.keys()
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}: choose from {', '.join(SCENARIOS)}")
    names = arguments.scenarios or list(SCENARIOS)
    if arguments.vllm_python is not None and not arguments.draw:
        measure_beside_vllm(arguments.vllm_python, arguments.runs)
    for run in range(1, 1 if arguments.draw else arguments.runs + 1):
        for name in names:
            if SCENARIOS[name].rate and (os.geteuid() != 0 or not shutil.which("tc")):
                print(f"{name}: needs root and tc: left out", file=sys.stderr)
                continue
            measure(name, run)
    latency_page.draw_pictures()
    markers.rewrite([latency_page.PAGE], latency_page.TABLES)


if __name__ == "__main__":
    main()
