"""The ``krakenlm`` command, also as ``python -m krakenlm``."""

import atexit
import os
import signal
import sys
from typing import Any


def main() -> None:
    """Run the command; Ctrl-C while it is still being loaded ends as it does later on."""
    end = _End()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _leave)
    try:
        from krakenlm.cli.main import main as run

        if signal.getsignal(signal.SIGINT) is _leave:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        run()
        end.code = 0
    except SystemExit as leave:
        end.code = 0 if leave.code is None else leave.code
        raise


class _End:
    """Ends this process as soon as all has been cleaned up.

    Taking PyTorch's and Transformers' objects apart, which Python does last, takes up to seconds.
    """

    def __init__(self) -> None:
        self.code: str | int | None = None
        atexit.register(self._at_exit)  # the first to be registered is the last to be called

    def _at_exit(self) -> None:
        if not isinstance(self.code, int):
            return
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except (OSError, ValueError):  # Python has its own way to complain
            return
        os._exit(self.code)


def _leave(*_: Any) -> None:
    print("krakenlm: interrupted: nothing had begun", file=sys.stderr)  # noqa: T201
    sys.exit(130)


if __name__ == "__main__":
    main()
