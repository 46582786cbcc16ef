"""What kind of model lies at a path?"""

from pathlib import Path

from krakenlm.config import MODEL_TYPE
from krakenlm.errors import KrakenError
from krakenlm.integrations.pretrained.sources import Source

_GGUF = b"GGUF"


def foreign_source(path: Path) -> Source | None:
    """The model of another family that lies there; None where it is none.

    Raises:
        KrakenError: it is a folder without a model, or a damaged file.
    """
    path = Path(path)
    if path.is_file():
        return _file(path)
    from krakenlm.integrations.pretrained.sources import FolderSource

    files = sorted(path.glob("*.gguf")) if path.is_dir() else []
    if files and not (path / "config.json").is_file():
        raise KrakenError(f"{path} holds a GGUF file: give the file itself, {files[0]}")
    source = FolderSource(path)
    return None if source.config.get("model_type") == MODEL_TYPE else source


def _file(path: Path) -> Source | None:
    with path.open("rb") as file:
        is_gguf = file.read(len(_GGUF)) == _GGUF
    if not is_gguf and path.suffix != ".gguf":
        return None
    from krakenlm.integrations.pretrained.gguf_file import GgufSource

    return GgufSource(path)
