"""``python -m krakenlm`` is the ``krakenlm`` command."""

from krakenlm.cli import main

main()
