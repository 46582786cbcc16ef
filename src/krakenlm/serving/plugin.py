"""What vLLM runs in each of its processes before it looks at a model (``vllm.general_plugins``)."""

import krakenlm  # noqa: F401  makes AutoConfig know the model type, which vLLM reads first
from krakenlm.config import ARCHITECTURE


def register() -> None:
    """Tell vLLM which class runs krakenlm's checkpoints; calling twice is harmless.

    The class is named, not imported: vLLM imports it where a model is loaded, and its version is
    checked there, so that an untested vLLM still serves everybody else's models.
    """
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, "krakenlm.serving.vllm_model:KrakenForCausalLM")
