"""Where do the processes of torchrun meet when it starts them once more?

All attempts of ``torchrun --max-restarts`` share one store, in which gloo finds the addresses of
processes that are gone and waits for them (pytorch issue 135712; seen with PyTorch 2.13).
"""

import os

from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from krakenlm.errors import KrakenError

_APART = "TORCH_DISABLE_SHARE_RDZV_TCP_STORE"


def store_of_this_attempt() -> Store | None:
    """A part of the store for this attempt alone; None where it needs nothing of its own.

    Raises:
        KrakenError: several machines share a store. Each counts its own attempts, so that they
            would not find each other in the second one.
    """
    number = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))
    most = int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0"))
    if not most or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) > 1:
        raise KrakenError(
            f"torchrun --max-restarts {most} on several machines: start it with {_APART}=1, or a "
            "second attempt waits for the processes of the first"
        )
    if number == 0:
        return None
    store, _, _ = next(rendezvous("env://"))
    return PrefixStore(f"attempt {number}", store)
