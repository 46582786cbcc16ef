"""How does lm-evaluation-harness ask a model that vLLM runs?"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from krakenlm.config import count_parameters, with_sublayers
from krakenlm.eval.harness import HarnessModel, require_harness
from krakenlm.eval.model import check_directory
from krakenlm.eval.report import Backend
from krakenlm.model.checkpoint import read_config
from krakenlm.overrides import require_arguments
from krakenlm.serving.machine import QUIET, cpu_settings, vllm_is_for_cpus
from krakenlm.serving.options import KEY
from krakenlm.serving.parts import own_shard


def with_vllm(
    model: Path, devices: int, sublayers: int | None = None
) -> Callable[[int], HarnessModel]:
    """Have the harness ask a model through vLLM; given a batch size, the result loads it.

    Loading sets environment variables that the user has not set, for vLLM's processes to inherit.

    Args:
        model: a checkpoint folder of krakenlm with a tokenizer.
        devices: tensor-parallel ranks.
        sublayers: another N than the model's own, see ``krakenlm.config.with_sublayers``.

    Raises:
        KrakenError: no such model, a number of devices or an N that does not fit it, or no vLLM.
    """
    check_directory(model)
    config = with_sublayers(read_config(model), sublayers)
    own_shard(config, 0, devices)
    settings = {**QUIET, **(cpu_settings(devices) if vllm_is_for_cpus() else {})}
    require_harness()

    def load(batch_size: int) -> HarnessModel:
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        parameters = count_parameters(config)
        return _harness_model(model, devices, parameters, batch_size, sublayers)

    return load


def _harness_model(
    model: Path, devices: int, parameters: int, batch_size: int, sublayers: int | None
) -> HarnessModel:
    """The harness's own vLLM model, with what a report asks; vLLM starts here."""
    from lm_eval.models.vllm_causallms import VLLM

    from krakenlm.eval.harness_model import CountingLM
    from krakenlm.serving import vllm_api as api

    class VllmLM(CountingLM, VLLM):  # type: ignore[misc]
        runtime: Backend = "vllm"

        def __init__(self) -> None:
            arguments = {
                "pretrained": str(model),
                "dtype": _stored_dtype(model),
                "tensor_parallel_size": devices,
                "add_bos_token": False,
            }
            require_arguments(VLLM.__init__, arguments)
            # What the harness does not know goes to vLLM, which refuses what it does not know.
            of_vllm: dict[str, Any] = {"max_num_seqs": batch_size}
            if sublayers is not None:
                of_vllm["additional_config"] = {KEY: {"sublayers": sublayers}}
            super().__init__(**arguments, **of_vllm)
            self.devices = devices
            self.sublayers = sublayers
            self.parameters = parameters

        @property
        def dtype_name(self) -> str:
            return str(api.computes_in(self.model)).removeprefix("torch.")

        @property
        def device(self) -> torch.device:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def close(self) -> None:
            api.shut_down(self.model)

        def longest(self) -> tuple[int, int]:
            # vLLM sees the last token as well, and generates one behind it.
            return self.max_length - 1, self.max_length - 2

    lm: HarnessModel = VllmLM()
    return lm


def _stored_dtype(model: Path) -> str:
    """The number format of the weights; left to itself, vLLM rounds float32 to 16 bits."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(model, trust_remote_code=False).dtype
    return str(dtype or torch.float32).removeprefix("torch.")
