"""The ``krakenlm`` command: one module a command, each imported when it is called."""

from krakenlm.cli.main import main

__all__ = ["main"]
