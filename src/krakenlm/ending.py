"""What ends a process, and what must not for a while?"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

EXIT_BY_SIGTERM = 128 + signal.SIGTERM
"""As shells count it."""


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


@contextmanager
def sigterm_as(handler: signal.Handlers) -> Iterator[None]:
    """Meanwhile, SIGTERM does what ``handler`` says; outside the main thread, what it always does.

    Args:
        handler: SIG_DFL ends this process at once, SIG_IGN does nothing.
    """
    try:
        before = signal.signal(signal.SIGTERM, handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def end_with_parent() -> None:
    """End this process, which ``multiprocessing`` started, when its parent is gone."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True, name="watch parent").start()
