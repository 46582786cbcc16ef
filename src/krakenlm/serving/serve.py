"""``krakenlm serve``: vLLM's server with settings that suit the machine.

Only what the user did not set is set here, whether by a flag of vLLM's or by an environment
variable of its own.
"""

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from krakenlm.config import with_sublayers
from krakenlm.console import notes, results
from krakenlm.errors import KrakenError
from krakenlm.model.checkpoint import read_config
from krakenlm.serving.machine import QUIET, VLLM, cpu_settings, vllm_is_for_cpus
from krakenlm.serving.options import KEY
from krakenlm.serving.parts import own_shard
from krakenlm.serving.requests import has_chat_template, streaming_request, values_of

_PLAIN_CHAT = Path(__file__).parent / "plain_chat.jinja"


@dataclass(frozen=True)
class Launch:
    """A server to start.

    Attributes:
        command: program and arguments.
        environment: variables to add to this process's.
        url: where it will listen; empty for a node that only computes, for another that listens.
        model: the name that requests call the model by.
    """

    command: list[str]
    environment: dict[str, str]
    url: str
    model: str

    @property
    def curl(self) -> str:
        """A command that streams an answer."""
        return streaming_request(self.url, self.model)


def serve(model: Path, devices: int, flags: Sequence[str], sublayers: int | None = None) -> int:
    """Run vLLM's server until it ends or is told to; returns its exit status.

    Args:
        model: a checkpoint folder.
        devices: tensor-parallel ranks.
        flags: passed on to ``vllm serve``.
        sublayers: another N than the model's own, see ``krakenlm.config.with_sublayers``.

    Raises:
        KrakenError: no vLLM here, a folder that holds no model, an N that it cannot have, a port
            in use.
    """
    launch, process = _start(model, devices, flags, sublayers=sublayers)
    # Ctrl-C reaches both processes; the server ends its requests, this one waits for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: process.terminate())
    if launch.url and _comes_up(process, launch.url):
        results.print(f"serving {launch.model} on {launch.url}", markup=False)
        results.print(launch.curl, markup=False)
    return process.wait()


def _nothing() -> None:
    pass


@contextmanager
def running(
    model: Path, devices: int, flags: Sequence[str], check: Callable[[], None] = _nothing
) -> Iterator[Launch]:
    """A server that answers, for as long as the block runs.

    It says little, and that on stderr.

    Args:
        model: see ``serve``.
        devices: likewise.
        flags: likewise.
        check: called while the server starts; raises where it cannot come up any more.

    Raises:
        KrakenError: as ``serve``, or the server ended before it answered.
    """
    quiet = [*flags, "--uvicorn-log-level", "warning"]
    launch, process = _start(model, devices, quiet, QUIET)
    try:
        if not _comes_up(process, launch.url, check):
            raise KrakenError(f"vLLM ended with {process.returncode} before it served {model}")
        yield launch
    finally:
        process.terminate()
        process.wait()


def _start(
    model: Path,
    devices: int,
    flags: Sequence[str],
    settings: Mapping[str, str] | None = None,
    sublayers: int | None = None,
) -> tuple[Launch, subprocess.Popen[bytes]]:
    launch = plan(
        model,
        devices,
        flags,
        on_cpu=vllm_is_for_cpus(),
        environment=os.environ,
        sublayers=sublayers,
    )
    if launch.url:
        _check_port(launch.url)
    environment = {**(settings or {}), **os.environ, **launch.environment}
    return launch, subprocess.Popen(launch.command, env=environment)


def plan(
    model: Path,
    devices: int,
    flags: Sequence[str],
    *,
    on_cpu: bool,
    environment: Mapping[str, str],
    sublayers: int | None = None,
) -> Launch:
    """What to start.

    Args:
        model: a checkpoint folder.
        devices: tensor-parallel ranks.
        flags: of the user, for ``vllm serve``.
        on_cpu: vLLM's build is the one for CPUs.
        environment: of this process.
        sublayers: another N than the model's own, see ``krakenlm.config.with_sublayers``.

    Raises:
        KrakenError: no model there, or a number of devices or an N that does not fit it.
    """
    config = with_sublayers(read_config(model), sublayers)
    own_shard(config, 0, devices)  # whether it can be shared out, said before vLLM starts
    given = {flag.partition("=")[0].replace("_", "-") for flag in flags if flag.startswith("--")}
    defaults = {
        "--tensor-parallel-size": str(devices),
        "--host": "127.0.0.1",
        "--port": "8000",
        "--served-model-name": model.resolve().name,
    }
    if on_cpu:
        defaults["--dtype"] = "float32"
    if sublayers is not None:
        _refuse_whole_table(sublayers, given)
        defaults[f"--additional-config.{KEY}.sublayers"] = str(sublayers)
    if not has_chat_template(model):
        defaults["--chat-template"] = str(_PLAIN_CHAT)
    chosen = {name: value for name, value in defaults.items() if name not in given}
    command = [*VLLM, "serve", str(model), *flags]
    for name, value in chosen.items():
        command += [name, value]
    values = {**chosen, **values_of(flags)}
    settings = cpu_settings(_devices_here(devices, values)) if on_cpu else {}
    return Launch(
        command=command,
        environment={k: v for k, v in settings.items() if k not in environment},
        url="" if "--headless" in given else _url(values["--host"], values["--port"]),
        model=values["--served-model-name"],
    )


def _refuse_whole_table(sublayers: int, given: Collection[str]) -> None:
    """vLLM joins parts of a table, and takes the last of several whole ones."""
    if "--additional-config" in given:
        raise KrakenError(
            f"--sublayers {sublayers}: it goes into vLLM's --additional-config, which is given as "
            f"a whole: give its parts as --additional-config.{KEY}.OPTION VALUE"
        )


def _devices_here(devices: int, values: Mapping[str, str]) -> int:
    """How many of the ranks this node holds."""
    nodes = values.get("--nnodes", "1")
    if not nodes.isdecimal() or int(nodes) < 1 or devices % int(nodes):
        raise KrakenError(
            f"--nnodes {nodes}: {devices} devices have to be shared out evenly among the nodes"
        )
    return devices // int(nodes)


def _url(host: str, port: str) -> str:
    return f"http://{'127.0.0.1' if host == '0.0.0.0' else host}:{port}"  # noqa: S104


def _check_port(url: str) -> None:
    host, _, port = url.removeprefix("http://").rpartition(":")
    with socket.socket() as probe:
        if probe.connect_ex((host, int(port))) == 0:
            raise KrakenError(f"{url} is in use: choose another with --port")


def _comes_up(
    process: subprocess.Popen[bytes], url: str, check: Callable[[], None] = _nothing
) -> bool:
    """Wait until the server answers; False where it ended first."""
    notes.print(f"starting vLLM for {url}, which takes a minute or so", markup=False)
    while process.poll() is None:
        check()
        try:
            with urlopen(f"{url}/health", timeout=5) as answer:  # noqa: S310  always http
                if answer.status == 200:
                    return True
        except (URLError, OSError):
            pass
        time.sleep(0.5)
    return False
