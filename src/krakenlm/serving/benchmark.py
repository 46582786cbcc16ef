"""``krakenlm bench serve``: served models against each other, by vLLM's own benchmark.

Each model is served in turn and asked by ``vllm bench serve``, which sends random prompts of one
length and measures what a client sees. Models take turns in every round, so that a machine that
drifts stays fair to all.
"""

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from krakenlm.console import notes
from krakenlm.environment import Environment, cores_here
from krakenlm.errors import KrakenError, first_line
from krakenlm.model.checkpoint import read_config
from krakenlm.serving.benchmark_report import Load, Served, ServingReport
from krakenlm.serving.machine import QUIET, VLLM, vllm_is_for_cpus
from krakenlm.serving.serve import running

# The benchmark asks the same prompts of every server, some of them more than once.
_FLAGS = ("--no-enable-prefix-caching",)
_SECONDS_TO_END = 30.0


@dataclass(frozen=True)
class Endpoint:
    """A server that answers: its address, and the name that requests call the model by."""

    url: str
    name: str


@dataclass(frozen=True)
class Nodes:
    """Where servers of several nodes run; this one listens.

    Attributes:
        peers: what runs a command on each of the others, such as ``ssh node2``.
        master_addr: this node's address, as the others see it.
    """

    peers: tuple[str, ...] = ()
    master_addr: str = ""

    def __post_init__(self) -> None:
        if bool(self.peers) != bool(self.master_addr):
            raise KrakenError("--peer and --master-addr: servers of several nodes need both")

    def flags(self, rank: int) -> list[str]:
        """What one node's part of ``krakenlm serve`` is given; none for a single node."""
        if not self.peers:
            return []
        count = str(1 + len(self.peers))
        flags = ["--nnodes", count, "--node-rank", str(rank), "--master-addr", self.master_addr]
        return [*flags, "--headless"] if rank else flags


@dataclass(frozen=True)
class Contestant:
    """A model to measure.

    Attributes:
        folder: holds its tokenizer and configuration.
        label: for tables.
        wiring: its architecture.
        serve: makes it answer for as long as it is measured.
    """

    folder: Path
    label: str
    wiring: str
    serve: Callable[[], AbstractContextManager[Endpoint]]


def measure(
    models: Sequence[Path],
    devices: int,
    loads: Sequence[Load],
    *,
    rounds: int = 1,
    urls: Sequence[str] = (),
    nodes: Nodes = Nodes(),
    command: Sequence[str] = (),
) -> ServingReport:
    """Serve each model in turn and measure it under each load, ``rounds`` times.

    Args:
        models: checkpoint folders with tokenizers.
        devices: tensor-parallel ranks of the servers that are started.
        loads: in order.
        rounds: how often all of it is repeated.
        urls: servers that run already, one for each model; none are started then.
        nodes: that the servers are spread over.
        command: what was typed, for the report.

    Raises:
        KrakenError: no vLLM, no such model or server, or requests that failed.
    """
    vllm_is_for_cpus()  # refuses where vLLM is missing
    contestants = _contestants(models, devices, urls, nodes)  # before anything is started
    results = []
    for index in range(rounds):
        for contestant in contestants:
            with contestant.serve() as endpoint:
                for load in loads:
                    notes.print(
                        f"round {index + 1} of {rounds}, {contestant.label}: "
                        f"{load.concurrency} at a time",
                        markup=False,
                    )
                    found = ask(endpoint, contestant.folder, load, seed=index)
                    results.append(summary(found, contestant, load, index))
    return ServingReport(
        devices=0 if urls else devices,
        flags=() if urls else (*_FLAGS, *nodes.flags(0)),
        results=tuple(results),
        vllm=version("vllm"),
        environment=Environment.here(cores=len(cores_here())),
        command=tuple(command),
    )


def _contestants(
    models: Sequence[Path], devices: int, urls: Sequence[str], nodes: Nodes
) -> list[Contestant]:
    labels = [model.resolve().name for model in models]
    if len(set(labels)) < len(labels):
        labels = [str(model) for model in models]
    wirings = [read_config(model).wiring for model in models]
    if urls and nodes.peers:
        raise KrakenError("--url and --peer: a server that runs already has its nodes")
    if urls and len(urls) != len(models):
        raise KrakenError(f"{len(urls)} times --url for {len(models)} models: give one for each")

    def served(index: int) -> Callable[[], AbstractContextManager[Endpoint]]:
        if not urls:
            return lambda: _started(models[index], devices, nodes)
        endpoint = Endpoint(urls[index].rstrip("/"), _name_at(urls[index].rstrip("/")))
        return lambda: nullcontext(endpoint)

    return [
        Contestant(model, label, wiring, served(index))
        for index, (model, label, wiring) in enumerate(zip(models, labels, wirings, strict=True))
    ]


@contextmanager
def _started(model: Path, devices: int, nodes: Nodes) -> Iterator[Endpoint]:
    with ExitStack() as stack:
        peers = [
            stack.enter_context(_peer(peer, model, devices, nodes.flags(rank)))
            for rank, peer in enumerate(nodes.peers, 1)
        ]

        def check_peers() -> None:
            for check in peers:
                check()

        flags = [*_FLAGS, *nodes.flags(0)]
        launch = stack.enter_context(running(model, devices, flags, check_peers))
        yield Endpoint(launch.url, launch.model)


@contextmanager
def _peer(
    prefix: str, model: Path, devices: int, flags: Sequence[str]
) -> Iterator[Callable[[], None]]:
    """Another node's part of a server, and what raises if it has ended.

    It does not end with the first node's part, so it is told to.
    """
    words = [*shlex.split(prefix), "krakenlm", "serve", str(model.resolve())]
    command = [*words, "--devices", str(devices), *_FLAGS, *flags]
    try:
        process = subprocess.Popen(command, env={**QUIET, **os.environ}, stdout=subprocess.DEVNULL)
    except OSError as error:
        raise KrakenError(
            f"--peer {prefix!r}: cannot be run ({first_line(error)}): give what runs a command on "
            "another node, such as 'ssh node2'"
        ) from error

    def check() -> None:
        if process.poll() is not None:
            raise KrakenError(
                f"--peer {prefix!r}: the server there ended with {process.returncode}: see above"
            )

    try:
        yield check
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS_TO_END)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _name_at(url: str) -> str:
    """What a server calls the model that it serves."""
    try:
        with urlopen(f"{url}/v1/models", timeout=30) as answer:  # noqa: S310  an address by the user
            return str(json.loads(answer.read())["data"][0]["id"])
    except (URLError, OSError, ValueError, LookupError, TypeError) as error:
        raise KrakenError(
            f"{url} does not say which model it serves ({first_line(error)}): give the address of "
            "an OpenAI-compatible server, such as http://127.0.0.1:8000"
        ) from error


def summary(found: dict[str, Any], contestant: Contestant, load: Load, index: int) -> Served:
    """What matters of a result of ``vllm bench serve``.

    Raises:
        KrakenError: not every request was answered.
    """
    if found["completed"] != load.num_prompts:
        raise KrakenError(
            f"{contestant.label}: {found['completed']} of {load.num_prompts} requests were "
            "answered: read what the server said"
        )
    return Served(
        model=contestant.label,
        wiring=contestant.wiring,
        round=index,
        load=load,
        ttft_ms=found["median_ttft_ms"],
        ttft_p99_ms=found["p99_ttft_ms"],
        tpot_ms=found["median_tpot_ms"],
        tokens_per_second=found["output_throughput"],
    )


def ask(endpoint: Endpoint, tokenizer: Path, load: Load, seed: int) -> dict[str, Any]:
    """Run vLLM's benchmark against a server; returns what it measured.

    Raises:
        KrakenError: with what the benchmark said last.
    """
    with tempfile.TemporaryDirectory(prefix="krakenlm-bench-") as folder:
        result = Path(folder) / "result.json"
        options = {
            "--base-url": endpoint.url,
            "--model": endpoint.name,
            "--tokenizer": str(tokenizer),
            "--dataset-name": "random",
            "--random-input-len": load.input_len,
            "--random-output-len": load.output_len,
            "--num-prompts": load.num_prompts,
            "--max-concurrency": load.concurrency,
            "--num-warmups": load.concurrency,
            "--temperature": 0,
            "--seed": seed,
            "--percentile-metrics": "ttft,tpot",
            "--result-dir": folder,
            "--result-filename": result.name,
        }
        command = [*VLLM, "bench", "serve"]
        command += ["--ignore-eos", "--save-result", "--disable-tqdm"]
        command += [str(part) for option in options.items() for part in option]
        run = subprocess.run(command, capture_output=True, text=True, check=False)
        if run.returncode or not result.is_file():
            said = run.stderr.strip().splitlines() or ["it said nothing"]
            raise KrakenError(f"vllm bench serve failed: {said[-1]}")
        found: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
        return found
