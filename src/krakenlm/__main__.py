"""``python -m krakenlm`` is the ``krakenlm`` command."""

from krakenlm.cli.main import main

main()
