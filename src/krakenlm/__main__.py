"""The ``krakenlm`` command, also as ``python -m krakenlm``."""

import signal
import sys
from typing import Any


def main() -> None:
    """Run the command; Ctrl-C while it is still being loaded ends as it does later on."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    from krakenlm.cli.main import main as run

    if signal.getsignal(signal.SIGINT) is _leave:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    run()


def _leave(*_: Any) -> None:
    print("krakenlm: interrupted: nothing had begun", file=sys.stderr)  # noqa: T201
    sys.exit(130)


if __name__ == "__main__":
    main()
