"""A GGUF file as a source: its parts by the ``gguf`` package, its tokenizer by Transformers."""

import importlib
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import AutoTokenizer

from krakenlm.data.tokenizer_files import cannot_load
from krakenlm.errors import KrakenError, first_line
from krakenlm.integrations.pretrained.gguf_config import FREQUENCIES, config_of
from krakenlm.integrations.pretrained.layouts import GGUF, GGUF_GPT2, GGUF_LLAMA, Layout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_LAYOUTS: dict[str, Layout] = {"llama": GGUF_LLAMA, "gpt2": GGUF_GPT2}
_16_BIT = {"F16": torch.float16, "BF16": torch.bfloat16}
_EMBEDDING = "token_embd.weight"


class GgufSource:
    """A file with one whole model.

    Quantised weights become float32, which holds them exactly; a file in one 16-bit format keeps
    it where that loses nothing.

    Raises:
        KrakenError: the package is missing, the file is damaged or cut short, or it holds what
            cannot be represented.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.generation: dict[str, Any] = {}
        with _damage(path):
            reader = _package().GGUFReader(path)
            fields = {key: field.contents() for key, field in reader.fields.items()}
            found = {tensor.name: tensor for tensor in reader.tensors}
        self.tensors = _GgufTensors(path, found)
        self._has_tokenizer = "tokenizer.ggml.tokens" in fields
        if fields.get("split.count", 1) > 1:
            raise KrakenError(f"{path} is one of {fields['split.count']} parts: merge them first")
        if _EMBEDDING not in found:
            raise KrakenError(f"{path}: tensor {_EMBEDDING} is missing: copy the file again")
        divisors = self.tensors.frequencies()
        try:
            vocabulary = int(found[_EMBEDDING].shape[1])
            self.config = config_of(fields, vocabulary, found, divisors)
        except KrakenError as error:
            raise KrakenError(f"{path}: {error}") from error
        self.layout = _LAYOUTS.get(self.config["model_type"], GGUF)

    def tokenizer(self) -> "PreTrainedTokenizerFast | None":
        """See ``Source``."""
        if not self._has_tokenizer:
            return None
        # Alone in a folder: what lies beside the file may belong to other models.
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "model.gguf").symlink_to(self.path.resolve())
            try:
                return AutoTokenizer.from_pretrained(
                    folder, gguf_file="model.gguf", local_files_only=True, trust_remote_code=False
                )
            except Exception as error:  # of many kinds
                raise cannot_load(self.path, error) from error


class _GgufTensors:
    """Tensors by name; ``slice_of`` leaves the work to whoever indexes what it returns."""

    def __init__(self, path: Path, found: dict[str, Any]) -> None:
        self._path = path
        self._found = found
        self._dtype = self._one_format()

    @property
    def names(self) -> Collection[str]:
        """Of all that are weights."""
        return self._found.keys() - {FREQUENCIES}

    def slice_of(self, name: str, shape: tuple[int, ...]) -> Any:
        """See ``TensorSource``."""
        if name not in self._found:
            raise KrakenError(f"{self._path}: tensor {name} is missing: copy the file again")
        tensor = self._found[name]
        found = tuple(int(size) for size in reversed(tensor.shape))
        if found != shape:
            raise KrakenError(
                f"{self._path}: tensor {name} has shape {list(found)} where its metadata ask for "
                f"{list(shape)}: the two do not belong together"
            )
        return _Lazy(self, tensor)

    def close(self) -> None:
        """The file stays mapped."""

    def frequencies(self) -> list[float]:
        """What llama3's frequencies are divided by, if anything."""
        found = self._found.get(FREQUENCIES)
        return [] if found is None else [float(x) for x in self._numbers(found)]

    def read(self, tensor: Any) -> Tensor:
        """One tensor in the format of all."""
        return self._numbers(tensor).to(self._dtype)

    def _numbers(self, tensor: Any) -> Tensor:
        with _damage(self._path):
            numbers = _package().dequantize(tensor.data, tensor.tensor_type)
            shape = tuple(int(size) for size in reversed(tensor.shape))
            return torch.from_numpy(numbers.astype("float32")).view(shape)

    def _one_format(self) -> torch.dtype:
        matrices = {
            tensor.tensor_type.name for tensor in self._found.values() if len(tensor.shape) > 1
        }
        dtype = _16_BIT.get(next(iter(matrices))) if len(matrices) == 1 else None
        if dtype is None:
            return torch.float32
        vectors = [t for name, t in self._found.items() if len(t.shape) == 1 and name in self.names]
        exact = all(torch.equal(v, v.to(dtype).float()) for v in map(self._numbers, vectors))
        return dtype if exact else torch.float32


class _Lazy:
    """A tensor that is made where it is indexed."""

    def __init__(self, tensors: _GgufTensors, tensor: Any) -> None:
        self._tensors = tensors
        self._tensor = tensor

    def __getitem__(self, index: Any) -> Tensor:
        return self._tensors.read(self._tensor)[index]


def _package() -> Any:
    try:
        return importlib.import_module("gguf")
    except ImportError as error:
        raise KrakenError(
            "GGUF files need the package gguf: pip install 'krakenlm[gguf]'"
        ) from error


@contextmanager
def _damage(path: Path) -> Iterator[None]:
    """Whatever a library makes of a damaged file is told in one line."""
    try:
        yield
    except KrakenError:
        raise
    except Exception as error:
        raise KrakenError(
            f"cannot read {path}: it is cut short, damaged or no GGUF file ({first_line(error)}): "
            "copy it again"
        ) from error
