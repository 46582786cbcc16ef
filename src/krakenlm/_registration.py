"""Make Hugging Face's Auto classes know krakenlm, without importing Transformers to do so.

``import krakenlm`` must stay quick, yet ``AutoModelForCausalLM`` must know the model right after
it. So a finder waits on ``sys.meta_path`` until somebody imports Transformers' auto modules,
lets the import run as always, and registers when it is done. A module that is loaded already is
registered with at once.
"""

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

# Importing the module on the right registers its class with the auto module on the left.
_REGISTRATIONS = {
    "transformers.models.auto.configuration_auto": "krakenlm.integrations.hf_config",
    "transformers.models.auto.modeling_auto": "krakenlm.integrations.hf",
}


def register_with_transformers() -> None:
    """Register now with what is loaded, and later with what is not; calling twice is harmless."""
    for auto_module, our_module in _REGISTRATIONS.items():
        if auto_module in sys.modules:
            import_module(our_module)
    if not any(isinstance(finder, _AutoModulesFinder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AutoModulesFinder())


class _AutoModulesFinder(MetaPathFinder):
    """Finds Transformers' auto modules as usual and wraps their loader."""

    def __init__(self) -> None:
        self._searching: set[str] = set()

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _REGISTRATIONS or name in self._searching:
            return None
        self._searching.add(name)  # the search below comes through here again
        try:
            spec = find_spec(name)
        finally:
            self._searching.discard(name)
        if spec is not None and spec.loader is not None:
            spec.loader = _RegisteringLoader(spec.loader)
        return spec


class _RegisteringLoader(Loader):
    """Executes a module with its own loader, then registers krakenlm's classes with it."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module(_REGISTRATIONS[module.__name__])
