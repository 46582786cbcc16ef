"""The ``krakenlm`` command: one module a command, which imports what it needs when called."""

from krakenlm.cli.main import main

__all__ = ["main"]
