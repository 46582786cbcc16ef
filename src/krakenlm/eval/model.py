"""Is this directory a whole model, and what is it loaded as?

Transformers fills tensors that a file lacks with random numbers and only warns; here a model is
what its directory says, or an error that names what is wrong with it.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

import krakenlm  # noqa: F401  makes AutoModelForCausalLM know model_type "kraken"
from krakenlm.config import with_sublayers
from krakenlm.errors import KrakenError, first_line
from krakenlm.model.checkpoint import read_config
from krakenlm.model.tensor_files import open_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


def pick_device(name: str = "auto") -> torch.device:
    """The device of that name; ``auto`` is the first GPU where there is one, else the CPU.

    Raises:
        KrakenError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        if name.partition(":")[0] not in ("cpu", "cuda"):
            raise RuntimeError("unknown kind")
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise KrakenError(
            f"device {name!r} cannot be used here ({first_line(error)}): choose cpu, cuda, "
            "cuda:0, ... or auto"
        ) from error
    return device


def check_directory(directory: Path) -> None:
    """Refuse what can be told to be no model without building it.

    Raises:
        KrakenError: the directory, ``config.json`` or the safetensors files are missing or damaged.
    """
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise KrakenError(
            f"model {directory} {what}: give a directory with config.json and *.safetensors"
        )
    if not (directory / "config.json").is_file():
        raise KrakenError(f"{directory} has no config.json: it is not a model directory")
    weights = sorted(directory.glob("*.safetensors"))
    if not weights:
        raise KrakenError(
            f"{directory} has no *.safetensors file: weights in other formats are not read; "
            "save them with save_pretrained, or run krakenlm convert"
        )
    for path in weights:
        open_tensors(path, "copy or download it again")


def load_causal_lm(
    directory: str | Path, *, device: str | torch.device = "cpu", sublayers: int | None = None
) -> "PreTrainedModel":
    """Load a causal language model of a local directory for evaluation, in its own number format.

    Only safetensors files are read, and no code that comes with the model is run.

    Args:
        directory: of the model.
        device: where to.
        sublayers: another N than the model's own, see ``krakenlm.config.with_sublayers``.

    Raises:
        KrakenError: the directory, its config or its weights are missing, damaged or do not fit
            each other, or N is no choice for this model.
    """
    directory = Path(directory)
    check_directory(directory)
    changes = {} if sublayers is None else {"config": _config_with(directory, sublayers)}
    from transformers import AutoModelForCausalLM

    try:
        with _quiet_transformers():
            model, report = AutoModelForCausalLM.from_pretrained(
                str(directory),
                **changes,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below with names and shapes
                output_loading_info=True,
            )
    except KrakenError as error:
        if changes:
            raise  # of the weights: the configuration has been read
        raise KrakenError(f"{directory / 'config.json'}: {error}") from error
    except Exception as error:  # Transformers raises many kinds, none of them for people
        raise KrakenError(f"cannot load the model in {directory}: {first_line(error)}") from error
    _check_report(directory, report)
    return model.to(device).eval()


def _config_with(directory: Path, sublayers: int) -> "PreTrainedConfig":
    from krakenlm.integrations.hf_config import KrakenConfig

    config = with_sublayers(read_config(directory), sublayers)
    own = KrakenConfig.from_pretrained(directory).to_dict()  # with keys of Transformers'
    return KrakenConfig(**{**own, **config.to_dict()})


def _check_report(directory: Path, report: dict[str, Any]) -> None:
    complaints = [
        f"{kind} {_some(found)}"
        for kind, found in (
            ("missing", sorted(report["missing_keys"])),
            ("unknown", sorted(report["unexpected_keys"])),
            ("of another shape", sorted(map(_shapes, report["mismatched_keys"]))),
        )
        if found
    ]
    if complaints or report["error_msgs"]:
        complaints = complaints or [str(report["error_msgs"][0]).strip().partition("\n")[0]]
        raise KrakenError(
            f"the weights in {directory} do not fit its config.json: tensors "
            f"{'; '.join(complaints)}: use the config that belongs to these weights"
        )


def _shapes(mismatch: tuple[str, Iterable[int], Iterable[int]]) -> str:
    name, stored, expected = mismatch
    return f"{name} ({tuple(stored)} where the config says {tuple(expected)})"


def _some(names: list[str], shown: int = 4) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Keep its progress bar and its report, which we put into an error, off the terminal."""
    from transformers.utils import logging

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
