"""How many bytes of its checkpoint a rank reads; each rank runs this itself."""

from typing import Any


def bytes_read(model: Any) -> int:
    """What a rank takes from its checkpoint's files, by having it load its weights once more."""
    from krakenlm.model import tensor_files

    really_open, taken = tensor_files.safe_open, []

    class CountingSlice:
        def __init__(self, lazy: Any) -> None:
            self._lazy = lazy

        def __getattr__(self, name: str) -> Any:
            return getattr(self._lazy, name)

        def __getitem__(self, index: Any) -> Any:
            tensor = self._lazy[index]
            taken.append(tensor.nbytes)
            return tensor

    class CountingFile:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            self._file = really_open(*arguments, **options)

        def keys(self) -> list[str]:
            return list(self._file.keys())

        def get_slice(self, name: str) -> CountingSlice:
            return CountingSlice(self._file.get_slice(name))

    tensor_files.safe_open = CountingFile  # type: ignore[assignment]
    model.load_weights(())
    tensor_files.safe_open = really_open
    return sum(taken)
