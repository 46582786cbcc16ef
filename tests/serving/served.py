"""A small model, and a server of krakenlm's in a process of its own."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import offline
import torch

from krakenlm.config import ModelConfig
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from ports import free_port

CONTEXT = 128


def save_model(folder: Path, tokenizer: str, context: int = CONTEXT, **changes: Any) -> None:
    """Two sub-layers with random weights, and a tokenizer."""
    torch.manual_seed(0)
    config = ModelConfig(
        num_sublayers=2, hidden_size=64, num_hidden_layers=2, heads_per_sublayer=2,
        vocab_size=300, max_position_embeddings=context, **changes,
    )  # fmt: skip
    KrakenForCausalLM(KrakenConfig.from_model_config(config)).save_pretrained(folder)
    shutil.copytree(tokenizer, folder, dirs_exist_ok=True)


class Server:
    """A server that has said how it is asked.

    Args:
        command: of ``krakenlm``.
        model: the folder to serve.
        flags: behind it.
        log: where stderr goes.
    """

    def __init__(self, command: str, model: Path, flags: Sequence[str], log: Path) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        words = [sys.executable, "-m", "krakenlm", command, str(model), *flags]
        with log.open("w") as stream:
            self.process = subprocess.Popen(
                [*words, "--host", "127.0.0.1", "--port", str(self.port)],
                env={**os.environ, **offline.SETTINGS, "PYTHONUNBUFFERED": "1"},
                stdout=subprocess.PIPE,
                stderr=stream,
                text=True,
            )
        self.said = self._wait(log)
        self._later: list[str] = []
        # A server whose output nobody reads stands still once the pipe is full.
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def said_later(self) -> str:
        """What it has said since, up to its end."""
        self._reader.join(60)
        return "".join(self._later)

    def _read(self) -> None:
        assert self.process.stdout is not None
        self._later.extend(self.process.stdout)

    def _wait(self, log: Path) -> list[str]:
        said = []
        assert self.process.stdout is not None
        for line in self.process.stdout:
            said.append(line.rstrip())
            if line.startswith("curl "):
                return said
        raise AssertionError("\n".join(said)[-3000:] + log.read_text()[-3000:])

    def post(self, path: str, body: str) -> tuple[int, str]:
        request = Request(f"{self.url}{path}", body.encode(), {"Content-Type": "application/json"})
        try:
            with urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            return error.code, error.read().decode()

    def get(self, path: str) -> tuple[int, str]:
        with urlopen(f"{self.url}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()

    def health(self) -> int:
        try:
            with urlopen(f"{self.url}/health", timeout=30) as answer:
                return int(answer.status)
        except HTTPError as error:
            return error.code
        except OSError:
            return 0  # not up, or down altogether

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
