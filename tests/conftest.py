"""Fixtures for tests of whole commands: a tiny text, its tokens, a tiny model with a tokenizer.

Nothing that a test does may be deprecated: pyproject.toml turns the warnings of its own process
into errors, this file those of processes that it starts, and what Transformers writes into its log.
"""

import json
import logging
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import tiny
from krakenlm.data.tokenizer import train_tokenizer
from krakenlm.environment import Environment, cores_here

# Transformers and torch warn users, not only developers, of what will go: with FutureWarning.
os.environ["PYTHONWARNINGS"] = ",".join(
    (
        "error::FutureWarning",
        # vLLM looks at every name of torch's modules for kernels to replace.
        "ignore:`torch.distributed.reduce_op` is deprecated:FutureWarning",
    )
)

_DEPRECATED = re.compile(r"deprecat|will be removed|no longer supported|obsolete", re.IGNORECASE)
_OF_LIBRARIES = ("transformers", "accelerate", "datasets", "huggingface_hub", "lm_eval")
_announced: list[str] = []
_warn = logging.Logger.warning


def _noticed(self: logging.Logger, message: object, *arguments: object, **options: object) -> None:
    """Also of loggers that say nothing at their level, and once for ``warning_once``."""
    if self.name.split(".")[0] in _OF_LIBRARIES and _DEPRECATED.search(str(message)):
        _announced.append(f"{self.name}: {message}")
    options["stacklevel"] = int(options.get("stacklevel", 1)) + 1  # type: ignore[call-overload]
    _warn(self, message, *arguments, **options)


logging.Logger.warning = _noticed  # type: ignore[method-assign]


_figures = pytest.StashKey[list[dict[str, str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--figures", type=Path, metavar="FILE", help="add what checks came to to this JSON file"
    )


def pytest_configure(config: pytest.Config) -> None:
    _hear_signals()
    # Tensors this small are slower on several threads, much slower on a busy machine.
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"
    config.stash[_figures] = []
    config.addinivalue_line(
        "markers", "announces(text, why): a library's log says so of calls that are its own"
    )


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str, str], None]:
    """Puts down what a check came to: what was tried, what was found, what was asked for."""
    heard = request.config.stash[_figures]

    def put_down(check: str, found: str, bar: str) -> None:
        heard.append({"check": check, "found": found, "bar": bar})

    return put_down


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    file, heard = (terminalreporter.config.getoption("--figures"), terminalreporter.config.stash)
    if file is None:
        return
    for line in heard[_figures]:
        terminalreporter.write_line("{check}: {found} (asked for: {bar})".format(**line))
    put = {"environment": asdict(Environment.here(len(cores_here()))), "checks": []}
    if file.exists():
        put = json.loads(file.read_text(encoding="utf-8"))
    put["checks"] += heard[_figures]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(put, indent=2) + "\n", encoding="utf-8")


def _hear_signals() -> None:
    """Let tests send Ctrl-C also where a shell started them to ignore it, in the background."""
    for number, handler in (
        (signal.SIGINT, signal.default_int_handler),
        (signal.SIGHUP, signal.SIG_DFL),
    ):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def _nothing_is_deprecated(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail where a library's log says that what we do will go, in a fixture before the test too."""
    yield
    own = [mark.args[0] for mark in request.node.iter_markers("announces")]
    said = [line for line in _announced if not any(text in line for text in own)]
    _announced.clear()
    assert not said, "\n".join(said)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Also where a command that ran in this process has changed it."""
    torch.set_num_threads(1)


@pytest.fixture
def own_signals() -> Iterator[None]:
    """``main`` installs a handler for SIGTERM, which pytest should not keep."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer that has learned from some of ``tiny.DOCUMENTS``."""
    folder = tmp_path_factory.mktemp("tokenizer")
    (folder / "text.txt").write_text("".join(tiny.DOCUMENTS[:50]))
    train_tokenizer([folder / "text.txt"], 300).save_pretrained(folder / "saved")
    return str(folder / "saved")


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text file."""
    path = tmp_path_factory.mktemp("tiny-text") / "text.txt"
    path.write_text(tiny.text(), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory, tiny_text: Path) -> Path:
    """What ``krakenlm prepare`` makes of it."""
    from krakenlm.data.tokens import prepare

    out = tmp_path_factory.mktemp("tiny-data") / "data"
    prepare([tiny_text], f"train:{tiny.VOCABULARY}", out, validation_fraction=0.1)
    return out


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory, tiny_data: Path) -> Path:
    """The folder of a saved, untrained model with the data's tokenizer; not to be changed."""
    from krakenlm.data.tokenizer import load_tokenizer
    from krakenlm.integrations.hf import KrakenForCausalLM
    from krakenlm.integrations.hf_config import KrakenConfig

    folder = tmp_path_factory.mktemp("tiny-model") / "model"
    torch.manual_seed(0)
    config = KrakenConfig.from_model_config(tiny.model_config(initializer_range=0.3))
    KrakenForCausalLM(config).save_pretrained(folder)
    load_tokenizer(tiny_data).save_pretrained(folder)
    return folder


@pytest.fixture
def own_model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the model to damage."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))
