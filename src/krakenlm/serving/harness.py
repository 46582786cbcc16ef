"""How does lm-evaluation-harness ask a model that vLLM runs?"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from krakenlm.config.costs import count_parameters
from krakenlm.eval.harness import HarnessModel, require_harness
from krakenlm.eval.model import check_directory
from krakenlm.eval.report import Backend
from krakenlm.model.checkpoint import read_config
from krakenlm.serving.machine import QUIET, cpu_settings, vllm_is_for_cpus
from krakenlm.serving.parts import own_shard


def with_vllm(model: Path, devices: int) -> Callable[[int], HarnessModel]:
    """Have the harness ask a model through vLLM; given a batch size, the result loads it.

    Loading sets environment variables that the user has not set, for vLLM's processes to inherit.

    Args:
        model: a checkpoint folder of krakenlm with a tokenizer.
        devices: tensor-parallel ranks.

    Raises:
        KrakenError: no such model, a number of devices that does not fit it, or no vLLM.
    """
    check_directory(model)
    config = read_config(model)
    own_shard(config, 0, devices)
    settings = {**QUIET, **(cpu_settings(devices) if vllm_is_for_cpus() else {})}
    require_harness()

    def load(batch_size: int) -> HarnessModel:
        for name, value in settings.items():
            os.environ.setdefault(name, value)
        return _harness_model(model, devices, count_parameters(config), batch_size)

    return load


def _harness_model(model: Path, devices: int, parameters: int, batch_size: int) -> HarnessModel:
    """The harness's own vLLM model, with what a report asks; vLLM starts here."""
    from lm_eval.models.vllm_causallms import VLLM

    from krakenlm.eval.harness_model import count_truncated
    from krakenlm.serving import vllm_api as api

    class VllmLM(VLLM):  # type: ignore[misc]
        runtime: Backend = "vllm"

        def __init__(self) -> None:
            super().__init__(
                str(model),
                dtype=_stored_dtype(model),
                tensor_parallel_size=devices,
                add_bos_token=False,
                max_num_seqs=batch_size,
            )
            self.devices = devices
            self.parameters = parameters
            self.truncated = 0

        @property
        def dtype_name(self) -> str:
            return str(api.computes_in(self.model)).removeprefix("torch.")

        @property
        def device(self) -> torch.device:
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def close(self) -> None:
            api.shut_down(self.model)

        def _loglikelihood_tokens(self, requests: Sequence[Any], *args: Any, **kwargs: Any) -> Any:
            # vLLM sees the last token as well, and generates one behind it.
            longest = self.max_length - 1
            self.truncated += count_truncated(requests, longest, longest - 1)
            return super()._loglikelihood_tokens(requests, *args, **kwargs)

    lm: HarnessModel = VllmLM()
    return lm


def _stored_dtype(model: Path) -> str:
    """The number format of the weights; left to itself, vLLM rounds float32 to 16 bits."""
    from transformers import AutoConfig

    dtype = AutoConfig.from_pretrained(model, trust_remote_code=False).dtype
    return str(dtype or torch.float32).removeprefix("torch.")
