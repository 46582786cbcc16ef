"""Which signals wait while processes are started?"""

import signal
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def held_back(*numbers: signal.Signals) -> Iterator[None]:
    """Signals wait meanwhile; processes that are started inherit that.

    The first one that ``multiprocessing`` spawns brings its resource tracker along, after whose
    start SIGINT and SIGTERM no longer wait: call ``resource_tracker.ensure_running`` before.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
