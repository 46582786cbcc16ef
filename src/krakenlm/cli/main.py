"""The command line's frame: the list of commands, and how errors reach people."""

import os
import signal
import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from krakenlm.cli import convert, demo, derive, generate, perplexity, prepare, train
from krakenlm.errors import KrakenError

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
    perplexity.perplexity,
    generate.generate,
    convert.convert,
):
    app.command()(command)

# Options that take several values after one flag, as in `--text a.txt b.txt`.
MANY_VALUED = ("--text",)


@app.callback()
def common(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.")
    ] = False,
    debug: Annotated[  # taken out of the arguments by main(), listed here for --help
        bool, typer.Option("--debug", help="Show the traceback of an error.")
    ] = False,
) -> None:
    """Transformers whose collectives are off the critical path."""
    if show_version:
        typer.echo(f"krakenlm {version('krakenlm')}")
        raise typer.Exit


def main(argv: Sequence[str] | None = None) -> None:
    """Run one command; problems the user can fix end in one line and exit code 2.

    ``--debug`` may stand anywhere and shows the traceback instead. Ctrl-C ends with 130.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up as for any exception
    try:
        app(spread_many_valued(arguments), standalone_mode=False)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        if debug:
            raise
        _complain("interrupted: nothing half-written was left behind")
        sys.exit(130)
    except BrokenPipeError:
        # The reader of a pipe (`| head`) went away: no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:
        if debug:
            raise
        sys.exit(_report(error))


def spread_many_valued(arguments: Sequence[str]) -> list[str]:
    """Write ``--text a b`` as ``--text a --text b``, which is the form the parser knows.

    The values end at the next option, so positional arguments come first or after another option.
    """
    spread: list[str] = []
    option: str | None = None
    for argument in arguments:
        if argument in MANY_VALUED:
            option = argument
        elif option is not None and not argument.startswith("-"):
            spread += [option, argument]
        else:
            option = None
            spread.append(argument)
    return spread


def _report(error: Exception) -> int:
    """Say what went wrong in one line; 2 where the user can mend it, 1 where we must."""
    if isinstance(error, KrakenError):
        _complain(str(error))
        return 2
    if hasattr(error, "format_message"):  # the parser's own: an unknown option, a missing argument
        message = error.format_message()
        if message:  # without a command the help was printed already
            _complain(f"{message} See `krakenlm --help`.")
        return 2
    _complain(f"{type(error).__name__}: {error} (--debug shows where)")
    return 1


def _complain(message: str) -> None:
    one_line = " ".join(message.split())
    print(f"krakenlm: {one_line}", file=sys.stderr)  # noqa: T201
