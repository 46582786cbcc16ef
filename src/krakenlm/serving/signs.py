"""Signs of life between vLLM's workers, for as long as they live.

vLLM notices a worker that ends. One that is stopped, or whose cable is pulled, it would wait for
five minutes, and a server would look healthy meanwhile. Here the others notice and end, and then
vLLM ends the engine.
"""

import atexit
import os
from collections.abc import Callable
from contextlib import ExitStack

from krakenlm.ranks.activity import Activity
from krakenlm.ranks.agreement import boot, own_namespace, told_by_all
from krakenlm.ranks.life import Loss, living
from krakenlm.ranks.network import own_address
from krakenlm.transport.collective import Group

_stack = ExitStack()
"""Of this process; a worker has one engine in its life."""


def give_signs_of_life(group: Group, timeout: float, log: Callable[[str], None]) -> None:
    """Begin; all workers of the group come here together, once.

    Args:
        group: the ranks, with a process group between CPUs.
        timeout: seconds of silence after which a rank is lost; 0 begins nothing.
        log: says why the engine ends, or why nobody watches.
    """
    if group.size == 1 or not timeout:
        return
    if not _can_meet(group):
        log(
            "no worker will notice that another one is stopped or cut off, since they do not know "
            "each other's addresses: set GLOO_SOCKET_IFNAME to the network interface they share"
        )
        return

    def end(loss: Loss) -> None:
        if loss.silent:  # of one that ended vLLM tells by itself
            log(f"{loss.text}: the engine ends")
            os._exit(1)

    atexit.register(_stack.close)
    activity = Activity()
    activity("serving")
    _stack.enter_context(living(group.index, group.size, activity, timeout, end, group.handle))


def _can_meet(group: Group) -> bool:
    """Whether the addresses that workers would give each other lead to them."""
    network = f"{boot()} {own_namespace('net')}"
    places = told_by_all((network, own_address()), group.handle)
    one_network = len({each for each, _ in places}) == 1
    return one_network or not any(a.startswith("127.") or a == "::1" for _, a in places)
