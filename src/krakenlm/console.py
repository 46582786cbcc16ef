"""The terminal: one console for progress and notes on stderr, results on stdout."""

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

notes = Console(stderr=True, highlight=False)
"""Progress, notes and errors: never mixed into a result that is piped on."""

results = Console(highlight=False, soft_wrap=True)
"""What a command was asked for."""


def print_note(text: str) -> None:
    """Say something beside the result, on one line however long it is."""
    notes.print(text, markup=False, soft_wrap=True)


def console_for_tables(width: int) -> Console:
    """Where tables go: to ``results``, or at a fixed width where no terminal has one of its own.

    Args:
        width: of a file or pipe, so that no cell is folded for want of one.
    """
    return results if results.is_terminal else Console(width=width, highlight=False)


def progress_bar(*extra: str) -> Progress:
    """A progress bar with count, elapsed and remaining time.

    Args:
        extra: rich text templates shown after the bar, such as ``"{task.fields[loss]}"``.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        *(TextColumn(template) for template in extra),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=notes,
    )
