"""krakenlm: Transformers whose collectives are off the critical path.

Importing the package is quick and loads no torch. The names below load what they need when they
are first used, and Hugging Face's ``AutoConfig`` and ``AutoModelForCausalLM`` know
``model_type = "kraken"`` from here on.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from krakenlm._registration import register_with_transformers

if TYPE_CHECKING:
    from krakenlm.config import ModelConfig, derive, model_config
    from krakenlm.engine.options import EngineOptions
    from krakenlm.engine.sampling import Sampling
    from krakenlm.engine.texts import generate
    from krakenlm.errors import KrakenError
    from krakenlm.integrations.hf import KrakenForCausalLM
    from krakenlm.integrations.hf_config import KrakenConfig

_HOME = {
    "ModelConfig": "krakenlm.config",
    "derive": "krakenlm.config",
    "model_config": "krakenlm.config",
    "KrakenError": "krakenlm.errors",
    "KrakenConfig": "krakenlm.integrations.hf_config",
    "KrakenForCausalLM": "krakenlm.integrations.hf",
    "EngineOptions": "krakenlm.engine.options",
    "Sampling": "krakenlm.engine.sampling",
    "generate": "krakenlm.engine.texts",
}
__all__ = [
    "EngineOptions",
    "KrakenConfig",
    "KrakenError",
    "KrakenForCausalLM",
    "ModelConfig",
    "Sampling",
    "derive",
    "generate",
    "model_config",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'krakenlm' has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


register_with_transformers()
