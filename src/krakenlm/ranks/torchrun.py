"""What must a process do itself that torchrun or accelerate started?

Find its meeting place, in a further attempt too, and end when whoever started it is gone: nobody
else would end it, and PyTorch waits half an hour for others that never come.
"""

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from krakenlm.ending import sigterm_as
from krakenlm.errors import KrakenError

_APART = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"
_LOOK_SECONDS = 0.5
_ANSWER_SECONDS = 30.0


def store_of_this_attempt() -> Store | None:
    """Where these processes meet; None leaves it to PyTorch.

    All attempts of ``torchrun --max-restarts`` share one store, in which gloo finds the addresses
    of processes that are gone and waits for them (pytorch issue 135712; seen with PyTorch 2.13).
    From the second one on each gets a part of its own.

    Raises:
        KrakenError: torchrun is gone; or it runs on several machines that share a store. Each
            counts its own attempts, so that they would not find each other in the second one.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    _check_store()
    number = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    most = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if most and int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise KrakenError(
            f"torchrun --max-restarts {most} on several machines: start it with {_APART}=1, or a "
            "second attempt waits for the processes of the first"
        )
    if number == 0:
        return None
    store, _, _ = next(rendezvous("env://"))
    return PrefixStore(f"attempt {number}", store)


@contextmanager
def ending_with_parent() -> Iterator[None]:
    """Meanwhile, end this process when the one that started it is gone."""
    parent, done = os.getppid(), threading.Event()

    def look() -> None:
        while not done.wait(_LOOK_SECONDS):
            if os.getppid() != parent:
                sys.stderr.write("krakenlm: who started this process is gone, so it ends as well\n")
                sys.stderr.flush()
                os._exit(1)

    threading.Thread(target=look, daemon=True, name="end with parent").start()
    try:
        yield
    finally:
        done.set()


def ended_by_sigterm() -> AbstractContextManager[None]:
    """Meanwhile, SIGTERM ends this process at once.

    While PyTorch waits for other processes no handler of Python's is heard, and torchrun, which
    has lost one of them, would wait 30 seconds for the others to end.
    """
    return sigterm_as(signal.SIG_DFL)


def _check_store() -> None:
    """Torchrun's store is there before its processes are, so that one answer is enough."""
    place = (os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
    try:
        socket.create_connection(place, _ANSWER_SECONDS).close()
    except OSError as error:
        raise KrakenError(
            f"{place[0]}:{place[1]}, where torchrun's processes meet, does not answer "
            f"({error.strerror or error}): torchrun is gone, or a firewall stands between: start "
            "it again"
        ) from error
