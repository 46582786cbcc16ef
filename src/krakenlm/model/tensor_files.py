"""The safetensors files of a model's folder: tensors by name, read in slices and written in turn.

Nothing is ever unpickled.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from krakenlm.errors import KrakenError, first_line
from krakenlm.files import write_json
from krakenlm.strict import read_json

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"

_FLOATING = ("F64", "F32", "BF16", "F16")
_FILE_BYTES = 2 << 30
"""What is gathered in memory before a file is written."""


def open_tensors(path: Path, advice: str) -> Any:
    """A safetensors file, open to be read in slices; its header has been checked.

    Args:
        path: of the file.
        advice: what to do about a damaged one, for the message.

    Raises:
        KrakenError: it is missing, damaged or truncated.
    """
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise KrakenError(
            f"{path} is damaged or truncated ({first_line(error)}): {advice}"
        ) from error


class Tensors:
    """The tensors of a model's folder by name, in one file or several, opened when first needed.

    Args:
        directory: the folder.
        advice: what to give instead of a folder without such files, for the message.

    Raises:
        KrakenError: there are none, or they are damaged.
    """

    def __init__(
        self,
        directory: Path,
        advice: str = "give a folder that `krakenlm train` or `krakenlm convert` wrote",
    ) -> None:
        self._directory = directory
        self._open: dict[Path, Any] = {}
        index, single = directory / INDEX, directory / SINGLE
        if single.is_file():
            self._file_of = dict.fromkeys(self._file(single).keys(), single)
        elif index.is_file():
            weight_map = read_object(index).get("weight_map")
            if not isinstance(weight_map, dict):
                raise KrakenError(f"{index} has no weight_map: copy the checkpoint again")
            self._file_of = {n: directory / Path(str(part)).name for n, part in weight_map.items()}
        else:
            raise KrakenError(f"{directory} holds no {SINGLE}: {advice}")

    def __enter__(self) -> "Tensors":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files, and with them of the memory that their pages take."""
        self._open.clear()

    @property
    def names(self) -> Collection[str]:
        """Of all tensors."""
        return self._file_of.keys()

    def whole(self, name: str) -> Any:
        """A lazy view of one tensor, whatever its shape and type."""
        return self._file(self._file_of[name]).get_slice(name)

    def slice_of(self, name: str, shape: tuple[int, ...]) -> Any:
        """A lazy view of one tensor, after checking its shape."""
        if name not in self._file_of:
            raise KrakenError(
                f"{self._directory}: tensor {name} is missing: the checkpoint does not fit its "
                "config.json; copy, convert or save the model again"
            )
        path = self._file_of[name]
        try:
            lazy = self._file(path).get_slice(name)
        except SafetensorError as error:
            raise KrakenError(f"{path} lacks tensor {name}: copy the checkpoint again") from error
        found = tuple(lazy.get_shape())
        if found != shape:
            raise KrakenError(
                f"{self._directory}: tensor {name} has shape {list(found)} where config.json asks "
                f"for {list(shape)}: the two do not belong together"
            )
        if lazy.get_dtype() not in _FLOATING:
            raise KrakenError(
                f"{self._directory}: tensor {name} holds {lazy.get_dtype()}: quantised weights are "
                "not supported; save the model in float32, bfloat16 or float16"
            )
        return lazy

    def _file(self, path: Path) -> Any:
        if path not in self._open:
            if not path.is_file():
                raise KrakenError(f"{path} is missing: copy the checkpoint again")
            self._open[path] = open_tensors(path, "copy or save it again")
        return self._open[path]


def write_tensors(
    tensors: Iterable[tuple[str, Tensor]], folder: Path, file_bytes: int = _FILE_BYTES
) -> None:
    """Write tensors into a folder as they come: one file, or numbered ones and their index.

    At any time those of one file are in memory, and one more.

    Args:
        tensors: names, each once, and tensors.
        folder: is there, and holds no weights; who calls sees to it that nobody finds it half full.
        file_bytes: a file is written as soon as its tensors have so many.
    """
    files: list[list[str]] = []
    gathered: dict[str, Tensor] = {}
    total = waiting = 0
    for name, tensor in tensors:
        gathered[name] = tensor.contiguous()
        waiting += tensor.nbytes
        total += tensor.nbytes
        if waiting >= file_bytes:
            _write_file(gathered, folder, files)
            gathered, waiting = {}, 0
    if gathered:
        _write_file(gathered, folder, files)
    if len(files) == 1:
        (folder / _numbered(1)).rename(folder / SINGLE)
        return
    weight_map = {}
    for number, names in enumerate(files, start=1):
        final = _numbered(number, f"-of-{len(files):05d}")
        (folder / _numbered(number)).rename(folder / final)
        weight_map.update(dict.fromkeys(names, final))
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _write_file(tensors: dict[str, Tensor], folder: Path, files: list[list[str]]) -> None:
    files.append(list(tensors))
    save_file(tensors, folder / _numbered(len(files)), metadata={"format": "pt"})


def _numbered(number: int, of: str = "") -> str:
    return f"model-{number:05d}{of}.safetensors"


def read_object(path: Path) -> dict[str, Any]:
    """The object that a JSON file in a model's folder holds.

    Raises:
        KrakenError: no such file, or it is damaged or holds something else.
    """
    try:
        values = read_json(path, "check the folder, or copy the file again")
    except FileNotFoundError as error:
        raise KrakenError(f"{path} is missing: give the folder of a saved model") from error
    except NotADirectoryError as error:
        raise KrakenError(f"{path.parent} is a file: give the folder of a saved model") from error
    if not isinstance(values, dict):
        raise KrakenError(f"{path} does not hold a JSON object: copy it again")
    return values
