"""``krakenlm eval``: zero-shot scores of a model, beside those of others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from krakenlm.cli.bench_outputs import command
from krakenlm.cli.options import CheckOption, OneDeviceOption, SublayersOption, check_if
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from krakenlm.eval.harness import HarnessModel
    from krakenlm.eval.report import EvalReport


_Model = Annotated[
    Path,
    typer.Argument(
        help="A model directory, or the JSON of an earlier run to show again.",
        show_default=False,
    ),
]
_Tasks = Annotated[
    str,
    typer.Option(metavar="LIST", help="superglue for all eight, or names such as BoolQ,COPA."),
]
_DataDir = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="SuperGLUE's official files, DIR/BoolQ/val.jsonl and so on; without it the data "
        "comes from the Hub.",
        show_default=False,
    ),
]
_DataFiles = Annotated[
    str,
    typer.Option(
        metavar="LIST", help="File names to look for in each task's folder; the first is read."
    ),
]
_Limit = Annotated[
    int | None,
    typer.Option(help="Examples of each task at most, the first ones.", show_default="all"),
]
_Backend = Annotated[
    Literal["hf", "vllm"], typer.Option(help="What runs the model: Transformers or vLLM.")
]
_Devices = Annotated[int, typer.Option(help="Processes that vLLM shares the model out to.")]
_BatchSize = Annotated[int, typer.Option(help="Requests computed at once.")]
_Json = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="Also write the scores as JSON.", show_default=False),
]
_Compare = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="BASE_JSON...",
        help="The JSON of earlier runs, for rows above this model's.",
        show_default=False,
    ),
]


def evaluate(
    model: _Model,
    tasks: _Tasks = "superglue",
    data_dir: _DataDir = None,
    data_files: _DataFiles = "val.jsonl",
    limit: _Limit = None,
    batch_size: _BatchSize = 8,
    device: OneDeviceOption = "auto",
    backend: _Backend = "hf",
    devices: _Devices = 1,
    sublayers: SublayersOption = None,
    json: _Json = None,
    compare: _Compare = None,
    check: CheckOption = False,
) -> None:
    """Score a model zero-shot on SuperGLUE, with lm-evaluation-harness's prompts and metrics."""
    from krakenlm.eval.harness import evaluate as ask
    from krakenlm.eval.official import chosen_tasks
    from krakenlm.eval.report import EvalReport
    from krakenlm.files import json_file

    chosen = chosen_tasks(tasks)
    bases = [EvalReport.load(path) for path in compare or ()]
    if model.is_file():
        _refuse_json(model, json)
        _show([*bases, EvalReport.load(model)])
        return
    check_if(check, model)
    with json_file(json) as write:
        report = ask(
            model,
            chosen,
            data_dir=data_dir,
            data_files=[name.strip() for name in data_files.split(",")],
            limit=limit,
            batch_size=batch_size,
            load=_loader(model, backend, device, devices, sublayers),
            command=command(),
        )
        _show([*bases, report])  # before the file: a full disk costs no evaluation
        write(report.to_json())


def _loader(
    model: Path, backend: str, device: str, devices: int, sublayers: int | None
) -> "Callable[[int], HarnessModel]":
    """What loads the model for a batch size."""
    if backend == "hf":
        if devices != 1:
            raise KrakenError(
                f"--devices {devices}: Transformers runs the model on one: add --backend vllm"
            )
        from krakenlm.eval.harness import with_transformers

        return with_transformers(model, device, sublayers)
    if device != "auto":
        raise KrakenError(
            f"--device {device}: vLLM computes on what it was built for: leave --device out"
        )
    from krakenlm.serving.harness import with_vllm

    return with_vllm(model, devices, sublayers)


def _refuse_json(model: Path, json: Path | None) -> None:
    if json is not None:
        raise KrakenError(
            f"--json {json}: {model} is the JSON of a run already, and nothing is evaluated: "
            "leave --json out, or give the model's directory"
        )


def _show(reports: Sequence["EvalReport"]) -> None:
    from krakenlm.console import console_for_tables, results
    from krakenlm.eval.tables import WIDTH, differences, remarks, score_table

    console = console_for_tables(WIDTH)
    console.print(score_table(reports))
    for report in reports:
        for line in remarks(report):
            results.print(f"{report.name}: {line}", markup=False)
    for line in differences(reports):
        results.print(f"not comparable: {line}", markup=False)
