"""Which part of a model each rank of a server holds."""

from krakenlm.config import ModelConfig, without_degree
from krakenlm.errors import KrakenError
from krakenlm.model.shard import Shard, split, units_of


def own_shard(config: ModelConfig, rank: int, ranks: int) -> Shard:
    """The part of rank ``rank``; vLLM's cache asks that all hold equally many heads.

    Raises:
        KrakenError: the model cannot be divided into ``ranks`` equal parts.
    """
    if ranks < 1:
        raise KrakenError(f"--devices {ranks}: needs 1 or more")
    if ranks > 1:
        config = without_degree(config)
    units = units_of(config)
    if units % ranks:
        fits = ", ".join(str(n) for n in range(1, units + 1) if units % n == 0)
        what = "sub-layers" if config.traits.depends_on_degree else "key and value heads"
        if config.traits.degree_is_a_choice:
            fits += ", or choose another N with --sublayers"
        raise KrakenError(
            f"{ranks} devices: this {config.wiring} model has {units} {what}, "
            f"which vLLM has to share out evenly: use one of {fits}"
        )
    return split(config, ranks)[rank]
