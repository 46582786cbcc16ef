"""Where a model of another family is read from: the folder that Transformers wrote."""

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.data.tokenizer_files import tokenizer_file
from krakenlm.integrations.pretrained.layouts import Layout
from krakenlm.model.tensor_files import Tensors, read_object

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class TensorSource(Protocol):
    """Tensors by name."""

    @property
    def names(self) -> Collection[str]:
        """Of all of them."""
        ...

    def slice_of(self, name: str, shape: tuple[int, ...]) -> Any:
        """What gives the tensor where it is indexed, after a check that it is there and fits."""
        ...

    def close(self) -> None:
        """Let go of what reading has taken."""
        ...


class Source(Protocol):
    """A model to be brought in."""

    @property
    def path(self) -> Path:
        """Where it is."""
        ...

    @property
    def config(self) -> dict[str, Any]:
        """What stands in its ``config.json``, or would."""
        ...

    @property
    def generation(self) -> dict[str, Any]:
        """What stands in its ``generation_config.json``; empty where there is none."""
        ...

    @property
    def layout(self) -> Layout | None:
        """How its tensors lie; None is as its family has them."""
        ...

    @property
    def tensors(self) -> TensorSource:
        """Its weights."""
        ...

    def tokenizer(self) -> "PreTrainedTokenizerFast | None":
        """Its tokenizer, if there is one."""
        ...


class FolderSource:
    """What Transformers' ``save_pretrained`` wrote.

    Raises:
        KrakenError: it has no ``config.json``, or no safetensors.
    """

    layout = None

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = read_object(path / "config.json")

    @property
    def generation(self) -> dict[str, Any]:
        """See ``Source``."""
        path = self.path / "generation_config.json"
        return read_object(path) if path.is_file() else {}

    @property
    def tensors(self) -> Tensors:
        """See ``Source``."""
        advice = "give a folder with the weights of a model"
        if any(self.path.glob("*.bin")):
            advice = "files that may hold code are not read: save the model as safetensors"
        return Tensors(self.path, advice)

    def tokenizer(self) -> "PreTrainedTokenizerFast | None":
        """See ``Source``."""
        if tokenizer_file(self.path) is None and not self._has_gpt2_files():
            return None
        return load_tokenizer(self.path)

    def _has_gpt2_files(self) -> bool:
        """Of other families they would be read in the wrong way."""
        return self.config.get("model_type") == "gpt2" and all(
            (self.path / name).is_file() for name in ("vocab.json", "merges.txt")
        )
