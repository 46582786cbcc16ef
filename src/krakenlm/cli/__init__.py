"""The ``krakenlm`` command: one module a command, which imports what it needs when called."""
