"""The command line's frame: the list of commands, and how errors reach people."""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from krakenlm.cli import (
    adapt,
    bench,
    bench_allreduce,
    bench_grid,
    bench_serve,
    calibrate,
    compare,
    convert,
    demo,
    derive,
    evaluate,
    generate,
    hf_serve,
    perplexity,
    plan,
    prepare,
    runs,
    serve,
    train,
)
from krakenlm.ending import EXIT_BY_SIGTERM
from krakenlm.errors import KrakenError, described

app = typer.Typer(
    name="krakenlm",
    help="Transformers whose collectives are off the critical path: derive, train, evaluate, run.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (
    demo.demo,
    derive.derive,
    prepare.prepare,
    train.train,
    runs.runs,
    compare.compare,
    perplexity.perplexity,
    generate.generate,
    convert.convert,
    adapt.adapt,
    plan.plan,
    calibrate.calibrate,
):
    app.command()(command)
app.command("eval")(evaluate.evaluate)
for server in (serve.serve, hf_serve.hf_serve):  # their flags are partly another program's
    app.command(context_settings={"ignore_unknown_options": True})(server)
for measured in (bench_allreduce.allreduce, bench_serve.serve, bench_grid.paper_grid):
    bench.app.command()(measured)
app.add_typer(bench.app)

# Options that take several values after one flag, as in `--text a.txt b.txt`.
MANY_VALUED = ("--text", "--compare")


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"krakenlm {version('krakenlm')}")
        raise typer.Exit


@app.callback()
def common(
    show_version: Annotated[  # eager: needs no command behind it
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
    debug: Annotated[  # taken out of the arguments by main(), listed here for --help
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Transformers whose collectives are off the critical path."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; problems the user can fix end in one line and exit code 2.

    ``--debug`` may stand anywhere and shows the traceback as well. Ctrl-C ends with 130,
    SIGTERM with 143.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    # Clean up as for any exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_BY_SIGTERM))
    try:
        # Not app(): what that makes of Ctrl-C and of a closed pipe depends on Typer's version.
        command = typer.main.get_command(app)
        with command.make_context("krakenlm", spread_many_valued(arguments)) as context:
            command.invoke(context)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except KeyboardInterrupt:
        from krakenlm.console import notes

        notes.show_cursor()  # a progress bar that was just starting cannot do it
        if debug:
            traceback.print_exc()
        _complain("interrupted: nothing half-written was left behind")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) went away; rich, writing tables, ends with 1 as well.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if debug:
            traceback.print_exc()
        sys.exit(_report(error))


def spread_many_valued(arguments: Sequence[str]) -> list[str]:
    """Write ``--text a b`` as ``--text a --text b``, which is the form the parser knows.

    The values end at the next option, so positional arguments come first or after another option.
    """
    spread: list[str] = []
    option: str | None = None
    for argument in arguments:
        if option is not None and not argument.startswith("-"):
            spread += [argument] if spread[-1] == option else [option, argument]
            continue
        name = argument.partition("=")[0]
        option = name if name in MANY_VALUED else None
        spread.append(argument)
    return spread


def _report(error: Exception) -> int:
    """Say what went wrong in one line; 2 where the user can mend it, 1 where we must."""
    if isinstance(error, KrakenError):
        _complain(str(error))
        return 2
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        _complain("cannot write the output: no space left where it goes")
        return 2
    if hasattr(error, "format_message"):  # the parser's own: an unknown option, a missing argument
        message = error.format_message()
        if message:  # without a command the help was printed already
            message = message.replace("Value error, ", "").rstrip(".")  # pydantic's, for choices
            _complain(f"{message}: see `krakenlm --help`")
        return 2
    rank = os.environ.get("RANK") if "WORLD_SIZE" in os.environ else None
    _complain(f"{described(error, f'rank {rank}' if rank else '')} (--debug shows where)")
    return 1


def _complain(message: str) -> None:
    one_line = " ".join(message.split())
    print(f"krakenlm: {one_line}", file=sys.stderr)  # noqa: T201
