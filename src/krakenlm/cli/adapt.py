"""``krakenlm adapt``: a trained model's sums out of sight, with little training."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from krakenlm.cli.bench_outputs import command
from krakenlm.cli.options import OneDeviceOption, positive_numbers
from krakenlm.errors import KrakenError

if TYPE_CHECKING:
    from krakenlm.adapt.report import AdaptReport
    from krakenlm.bench.latency import Setup
    from krakenlm.eval.report import EvalReport


_Model = Annotated[
    Path,
    typer.Argument(metavar="MODEL", help="The folder of a model; `convert` brings one in."),
]
_Data = Annotated[
    Path,
    typer.Option(
        metavar="DIR", help="Text to learn from, prepared with the model's own tokenizer."
    ),
]
_Out = Annotated[
    Path,
    typer.Option(metavar="DIR", help="Gets the run with the adapted model, and adapt.json."),
]
_Wiring = Annotated[str, typer.Option(help="shared, lagged, lagged-layer or ladder.")]
_Sublayers = Annotated[
    str,
    typer.Option(
        "--sublayers",
        "-n",
        metavar="N|LIST",
        help="N; of shared a list such as 1,2,3, from which each step draws, makes one model "
        "for each of these numbers.",
    ),
]
_MessageParts = Annotated[
    int, typer.Option(help="Of shared: groups of channels, of which each layer sums one.")
]
_Late = Annotated[
    str | None,
    typer.Option(
        metavar="COUNT|LAYERS",
        help="How many layers become late, those that mind least; or which, such as 8-29.",
        show_default="all",
    ),
]
_Budget = Annotated[
    str | None,
    typer.Option(
        metavar="PERCENT",
        help="As many layers as keep the perplexity before training within this: '+30%'.",
        show_default=False,
    ),
]
_Tokens = Annotated[int, typer.Option(help="To learn from.")]
_Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Of the run's recipe, such as training.lr=1e-4 or adapt.layerwise_steps=0; may be "
        "given several times.",
    ),
]
_Sample = Annotated[
    str,
    typer.Option(
        metavar="WINDOWSxTOKENS", help="Held-out text that layers and models are measured on."
    ),
]
_Also = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        help="Compare perplexities on this prepared text as well; may be given several times.",
        show_default=False,
    ),
]
_Superglue = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="SuperGLUE's official files, to score original, rewired and adapted zero-shot.",
        show_default=False,
    ),
]
_Limit = Annotated[
    int | None,
    typer.Option(help="Examples of each SuperGLUE task at most.", show_default="all"),
]
_Links = Annotated[
    list[str] | None,
    typer.Option(
        "--link",
        metavar="real|LINK",
        help="Time the first token of original and adapted over this link, such as "
        "gbps=1,latency_us=50; may be given several times.",
        show_default=False,
    ),
]
_Devices = Annotated[int | None, typer.Option(help="Processes to time with.", show_default="N")]


def adapt(
    model: _Model,
    data: _Data,
    out: _Out,
    wiring: _Wiring = "shared",
    sublayers: _Sublayers = "2",
    message_parts: _MessageParts = 1,
    late: _Late = None,
    budget: _Budget = None,
    tokens: _Tokens = 2_000_000,
    overrides: _Overrides = None,
    sample: _Sample = "4x512",
    also: _Also = None,
    superglue: _Superglue = None,
    limit: _Limit = None,
    links: _Links = None,
    devices: _Devices = None,
    device: OneDeviceOption = "auto",
) -> None:
    """Make a trained model's layers late, and train it to be what it was.

    An interrupted call goes on where it stopped.
    """
    from krakenlm.adapt.plan import Plan
    from krakenlm.adapt.probe import Sample
    from krakenlm.adapt.results import Measuring
    from krakenlm.adapt.run import adapt as run_adaptation

    numbers = positive_numbers("--sublayers", sublayers)
    if tokens < 1:
        raise KrakenError(f"--tokens {tokens}: needs 1 or more")
    plan = Plan.of(
        model,
        data,
        out,
        wiring=wiring,
        sublayers=numbers,
        message_parts=message_parts,
        late=late,
        budget=budget,
        tokens=tokens,
        overrides=overrides or (),
    )
    measuring = Measuring(
        sample=Sample.parse(sample, data),
        others=tuple(Sample.parse(sample, folder) for folder in also or ()),
        superglue=None if superglue is None else _scorer(superglue, limit, device),
        setups=tuple(
            _setup(link, devices or max(numbers), plan.config.max_position_embeddings)
            for link in links or ()
        ),
        device=device,
    )
    report = run_adaptation(plan, measuring, command())
    _show(report, plan.run / "model")


def _scorer(folder: Path, limit: int | None, device: str) -> "Callable[[Path], EvalReport]":
    from krakenlm.eval.harness import evaluate, require_harness, with_transformers
    from krakenlm.eval.official import chosen_tasks

    require_harness()
    tasks = chosen_tasks("superglue")

    def score(model: Path) -> "EvalReport":
        load = with_transformers(model, device)
        return evaluate(model, tasks, data_dir=folder, limit=limit, load=load)

    return score


def _setup(link: str, devices: int, context: int) -> "Setup":
    from krakenlm.bench.latency import Setup
    from krakenlm.environment import cores_here
    from krakenlm.transport.links import Link

    return Setup(
        devices=devices,
        input_len=min(512, context - 1),
        output_len=1,
        link=Link.parse(link),
        emulate_peers=devices > len(cores_here()) and link != "real",
        sums_alone=False,
    )


def _show(report: "AdaptReport", model: Path) -> None:
    from rich.table import Table

    from krakenlm.bench.tables import WIDTH, latency_table
    from krakenlm.console import console_for_tables, results

    table = Table(title="Perplexity of held-out text", title_justify="left")
    for heading in ("", "original", "rewired", "adapted", "over original"):
        table.add_column(heading, justify="right" if heading else "left")
    for data, found in report.perplexity.items():
        rise = found["adapted"] / found["original"] - 1
        table.add_row(data, *(f"{value:.2f}" for value in found.values()), f"{100 * rise:+.1f}%")
    console = console_for_tables(WIDTH)
    console.print(table)
    for latency in report.latency:
        console.print(latency_table(latency))
    results.print(f"{model}", markup=False)
