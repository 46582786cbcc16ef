"""Which tasks of lm-evaluation-harness are asked, and with which examples?

The harness's own definitions are used as they are. Where official files are given, definitions of
our own include the harness's and change nothing but where the examples come from.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from krakenlm.console import notes
from krakenlm.data.hub import require_hub
from krakenlm.errors import KrakenError, first_line
from krakenlm.eval.official import Examples, Task, find_file, read_examples
from krakenlm.eval.report import Absence
from krakenlm.eval.squad_metrics import provide_squad_metrics


@dataclass(frozen=True, kw_only=True, slots=True)
class Asked:
    """A task that is ready to be asked.

    Attributes:
        task: which one.
        loaded: what the harness made of its definition.
        source: where its examples come from.
        sha256: of the file they come from; empty for the Hub's data set.
    """

    task: Task
    loaded: Any
    source: str
    sha256: str


def from_hub(tasks: Sequence[Task]) -> list[Asked]:
    """The tasks with the harness's own data.

    Raises:
        KrakenError: the Hub cannot be reached, or does not have it.
    """
    require_hub("there is no --data-dir", "SuperGLUE's official files, --data-dir DIR")
    manager = _manager(_definitions())
    asked = []
    for task in tasks:
        try:
            loaded = manager.load([task.harness])
        except Exception as error:  # of the network, the Hub's client, or datasets
            raise KrakenError(
                f"{task.name} cannot be loaded from the Hugging Face Hub ({first_line(error)}): "
                "check the network, or give SuperGLUE's official files, --data-dir DIR"
            ) from error
        config = loaded["tasks"][task.harness].config
        source = f"{config.dataset_path}, {config.dataset_name}, {config.validation_split}"
        asked.append(Asked(task=task, loaded=loaded, source=source, sha256=""))
    return asked


def find_files(
    tasks: Sequence[Task], data_dir: Path, names: Sequence[str]
) -> tuple[list[tuple[Task, Path]], tuple[Absence, ...]]:
    """The tasks that have an official file, with it, and those that have none.

    Args:
        tasks: what is asked for.
        data_dir: SuperGLUE's folder.
        names: of the files, in order of preference.

    Raises:
        KrakenError: no such folder, or no file of any task.
    """
    if not data_dir.is_dir():
        what = "is a file" if data_dir.exists() else "does not exist"
        raise KrakenError(
            f"--data-dir {data_dir} {what}: give the folder with SuperGLUE's BoolQ, CB, ... in it"
        )
    wanted = " or ".join(names)
    found: list[tuple[Task, Path]] = []
    absent: list[Absence] = []
    for task in tasks:
        path = find_file(data_dir, task, names)
        if path is None:
            reason = f"{data_dir / task.name} holds no {wanted}"
            absent.append(Absence(task=task.name, reason=reason))
        else:
            found.append((task, path))
    if not found:
        raise KrakenError(
            f"--data-dir {data_dir} has no file of {', '.join(task.name for task in tasks)}: each "
            f"task's folder needs a {wanted}, as in {data_dir / tasks[0].name / names[0]}"
        )
    for absence in absent:
        notes.print(f"{absence.task} is absent: {absence.reason}", markup=False)
    return found, tuple(absent)


def from_files(files: Sequence[tuple[Task, Path]], scratch: Path) -> list[Asked]:
    """The tasks with examples from official files.

    Args:
        files: tasks and their files.
        scratch: an empty folder, which has to stay as long as the tasks are used.

    Raises:
        KrakenError: a file is not what it should be.
    """
    read = [(task, read_examples(path, task)) for task, path in files]
    for task, examples in read:
        _define(task, examples, scratch)
    manager = _manager(scratch)
    return [
        Asked(
            task=task,
            loaded=manager.load([task.harness]),
            source=examples.source,
            sha256=examples.sha256,
        )
        for task, examples in read
    ]


def _define(task: Task, examples: Examples, scratch: Path) -> None:
    """Write a definition that is the harness's but for its examples, and these."""
    from datasets import Dataset

    # Parquet keeps types as they are; from JSON a column of dates would come back as times.
    rows = scratch / f"{task.harness}.parquet"
    Dataset.from_list(examples.rows).to_parquet(str(rows))
    definition = {
        "include": str(_definitions() / task.name.lower() / "default.yaml"),
        "dataset_path": "parquet",
        "dataset_name": None,
        "dataset_kwargs": {
            "data_files": {"validation": str(rows)},
            "cache_dir": str(scratch / "cache"),
        },
        "validation_split": "validation",
        "training_split": None,  # zero-shot asks nothing of it
    }
    # JSON is YAML too.
    path = scratch / f"{task.harness}.yaml"
    path.write_text(json.dumps({"task": task.harness, **definition}), encoding="utf-8")


def _definitions() -> Path:
    """The folder of the harness's SuperGLUE tasks."""
    import lm_eval.tasks

    return Path(lm_eval.tasks.__file__).parent / "super_glue"


def _manager(folder: Path) -> Any:
    """The harness's index of the tasks in a folder; that of all its tasks takes far longer."""
    from lm_eval.tasks import TaskManager

    provide_squad_metrics()
    return TaskManager(include_path=str(folder), include_defaults=False)
