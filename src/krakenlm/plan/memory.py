"""What one device must hold, and how much of it a context or a batch may take."""

from typing import NamedTuple

from krakenlm.config import count_parameters, kv_cache_bytes_per_token
from krakenlm.engine.session import whole_buckets
from krakenlm.model.shard import Shard


class Memory(NamedTuple):
    """Bytes on one device.

    Attributes:
        weights: this rank's part, embeddings and its rows of the head included.
        cache: keys and values.
        buffers: most that tensors made on the way hold at once.
    """

    weights: int
    cache: int
    buffers: int

    @property
    def total(self) -> int:
        """All of them."""
        return sum(self)


class Room(NamedTuple):
    """What fits beside the weights.

    Attributes:
        context: most positions of each sequence, prompt and answer together.
        batch: most sequences of the planned length.
    """

    context: int
    batch: int


def weight_bytes(shard: Shard, element: int) -> int:
    """Bytes of one rank's parameters, as the engine allocates them."""
    local = shard.local_config
    parameters = count_parameters(local)
    if not local.tie_word_embeddings:  # of a head of its own a rank has some rows
        parameters -= (local.vocab_size - len(shard.head_rows)) * local.hidden_size
    return parameters * element


def cache_bytes(shard: Shard, element: int, *, batch: int, positions: int) -> int:
    """Bytes of one rank's KV cache, which has whole buckets of positions."""
    per_token = kv_cache_bytes_per_token(shard.local_config, element)
    return per_token * batch * whole_buckets(positions)


def memory_of(
    shard: Shard, element: int, *, batch: int, positions: int, buffers: int = 0
) -> Memory:
    """All that one rank holds.

    Args:
        shard: its part of the model.
        element: bytes of an element.
        batch: sequences at once.
        positions: of each, prompt and answer together.
        buffers: see ``Memory``; a traced program knows.
    """
    cache = cache_bytes(shard, element, batch=batch, positions=positions)
    return Memory(weight_bytes(shard, element), cache, buffers)


def room(
    shard: Shard, memory: Memory, usable: float, element: int, *, batch: int, tokens: int
) -> Room:
    """What else would fit.

    Buffers are taken to grow with the tokens of all prompts together.

    Args:
        shard: the rank's part.
        memory: what it holds as planned.
        usable: bytes of the device.
        element: bytes of an element.
        batch: as planned.
        tokens: of each prompt, as planned.
    """
    left = usable - memory.weights
    if left <= 0:
        return Room(0, 0)
    per_token = kv_cache_bytes_per_token(shard.local_config, element)
    buffers = memory.buffers / (batch * tokens)
    # Whole buckets fit, the last one perhaps to the last byte.
    positions = int(left / (batch * (per_token + buffers)))
    positions -= positions % whole_buckets(1)
    limit = shard.config.max_position_embeddings
    sequences = int(left / (memory.cache / batch + buffers * tokens))
    return Room(min(positions, limit), sequences)
