"""Which part of a model one rank holds.

Kraken divides its sub-layers, and every weight of a sub-layer goes with it. The other wirings
divide one layer as tensor parallelism does: query heads with their key and value heads, and
columns of the feed-forward network. Embeddings, and norms that all branches share, are
everywhere.
"""

import itertools
from dataclasses import dataclass

from krakenlm.config import ModelConfig
from krakenlm.errors import KrakenError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A run of units: sub-layers in Kraken, key and value heads in the other wirings.

    Attributes:
        config: of the whole model.
        first: index of the first unit held.
        count: units held.
    """

    config: ModelConfig
    first: int
    count: int

    @property
    def end(self) -> int:
        """Index behind the last unit held."""
        return self.first + self.count

    @property
    def ffn_columns(self) -> range:
        """Columns held of the feed-forward network, all branches side by side."""
        total = self.config.num_sublayers * self.config.ffn_dim
        units = units_of(self.config)
        return range(total * self.first // units, total * self.end // units)

    @property
    def local_config(self) -> ModelConfig:
        """The configuration of a decoder that holds just this part."""
        config = self.config
        if config.traits.own_streams:
            return config.replace(num_sublayers=self.count)
        queries_per_key = config.heads_per_sublayer // config.kv_heads_per_sublayer
        return config.replace(
            num_sublayers=1,
            heads_per_sublayer=self.count * queries_per_key,
            kv_heads_per_sublayer=self.count,
            ffn_dim=len(self.ffn_columns),
        )


def units_of(config: ModelConfig) -> int:
    """How many units a model can be divided into, and so the most devices it can use."""
    if config.traits.own_streams:
        return config.num_sublayers
    return config.num_key_value_heads


def split(config: ModelConfig, devices: int) -> list[Shard]:
    """Divide a model over devices as evenly as its units allow; N need not be a multiple.

    Raises:
        KrakenError: more devices than units.
    """
    units = units_of(config)
    if devices < 1:
        raise KrakenError(f"--devices {devices}: needs 1 or more")
    if devices > units:
        what = "sub-layers" if config.traits.own_streams else "key and value heads"
        raise KrakenError(
            f"--devices {devices}: this {config.wiring} model has {units} {what} to share out: "
            f"use at most {units}"
        )
    starts = [units * rank // devices for rank in range(devices + 1)]
    shards = [
        Shard(config=config, first=start, count=end - start)
        for start, end in itertools.pairwise(starts)
    ]
    if not config.traits.own_streams and not all(len(shard.ffn_columns) for shard in shards):
        raise KrakenError(
            f"--devices {devices}: ffn_dim={config.ffn_dim} has no column for each: use fewer"
        )
    return shards
