"""Which part of a model one rank holds.

Kraken divides its sub-layers, and every weight of a sub-layer goes with it; where that leaves
ranks over, several of them hold the same sub-layers, each a part of their heads and feed-forward
columns. The other wirings divide one layer as tensor parallelism does: query heads with their key
and value heads, and columns of the feed-forward network. Embeddings, and norms that all branches
share, are everywhere; the rows of an output head are shared out among all ranks.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from krakenlm.config import ModelConfig, without_degree
from krakenlm.errors import KrakenError


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A run of units: sub-layers in Kraken, key and value heads in the other wirings.

    Attributes:
        config: of the whole model.
        first: index of the first unit held.
        count: units held.
        tensor_index: which part of each of these sub-layers, 0 to ``tensor_parallel`` - 1.
        tensor_parallel: ranks that hold the same sub-layers; 1 in the other wirings.
        rank: whose part this is.
        ranks: ranks altogether.
        in_branches: the units are the configuration's branches in any wiring: see ``undivided``.
    """

    config: ModelConfig
    first: int
    count: int
    tensor_index: int = 0
    tensor_parallel: int = 1
    rank: int = 0
    ranks: int = 1
    in_branches: bool = False

    @property
    def end(self) -> int:
        """Index behind the last unit held."""
        return self.first + self.count

    @property
    def kv_heads(self) -> range:
        """Key and value heads held: of each sub-layer here, or of all branches side by side."""
        if self._holds_branches:
            return self._tensor_part(self.config.kv_heads_per_sublayer)
        return range(self.first, self.end)

    @property
    def ffn_columns(self) -> range:
        """Feed-forward columns held: of each sub-layer here, or of all branches side by side."""
        config = self.config
        if self._holds_branches:
            return self._tensor_part(config.ffn_dim)
        total, units = config.num_sublayers * config.ffn_dim, units_of(config)
        return range(total * self.first // units, total * self.end // units)

    @property
    def branch_kv_heads(self) -> list[range]:
        """The heads of each branch of the local decoder, counted over all branches of the model."""
        return self._of_each_branch(self.kv_heads, self.config.kv_heads_per_sublayer)

    @property
    def branch_ffn_columns(self) -> list[range]:
        """The feed-forward columns of each, likewise."""
        return self._of_each_branch(self.ffn_columns, self.config.ffn_dim)

    @property
    def head_rows(self) -> range:
        """Rows held of the output head; empty for some where ranks outnumber the vocabulary."""
        return _part(self.config.vocab_size, self.rank, self.ranks)

    @property
    def inner_ranks(self) -> range:
        """Ranks with the same sub-layers: what they add up is those sub-layers' branches."""
        start = self.rank - self.tensor_index
        return range(start, start + self.tensor_parallel)

    @property
    def outer_ranks(self) -> range:
        """Ranks with the same part of other units: what they add up is the sum of all streams."""
        return range(self.tensor_index, self.ranks, self.tensor_parallel)

    @cached_property
    def local_config(self) -> ModelConfig:
        """The configuration of a decoder that holds just this part."""
        config = self.config
        queries_per_key = config.heads_per_sublayer // config.kv_heads_per_sublayer
        return config.replace(
            num_sublayers=self.count if self._holds_branches else 1,
            heads_per_sublayer=len(self.kv_heads) * queries_per_key,
            kv_heads_per_sublayer=len(self.kv_heads),
            ffn_dim=len(self.ffn_columns),
        )

    @property
    def _holds_branches(self) -> bool:
        return self.in_branches or self.config.traits.depends_on_degree

    def _of_each_branch(self, held: range, size: int) -> list[range]:
        if not self._holds_branches:
            return [held]
        starts = (size * unit for unit in range(self.first, self.end))
        return [range(start + held.start, start + held.stop) for start in starts]

    def _tensor_part(self, size: int) -> range:
        return _part(size, self.tensor_index, self.tensor_parallel)


def undivided(config: ModelConfig) -> Shard:
    """All of a model, in the branches that its configuration has, as it is stored.

    A rank of a wiring that does not depend on them holds one branch; this one holds all.
    """
    return Shard(config=config, first=0, count=config.num_sublayers, in_branches=True)


def units_of(config: ModelConfig) -> int:
    """How many units a model can be divided into, and so the most rank groups it can use."""
    if config.traits.depends_on_degree:
        return config.num_sublayers
    return config.num_key_value_heads


def split(
    config: ModelConfig,
    devices: int,
    *,
    placement: Sequence[int] | None = None,
    tensor_parallel: int = 1,
) -> list[Shard]:
    """Divide a model over devices.

    A model of one branch is divided as the wiring that it is the same as, if there is one.

    Args:
        config: of the whole model.
        devices: ranks.
        placement: units of each group of ranks, in order; by default as even as the units allow,
            which need not be a multiple.
        tensor_parallel: ranks in a group. They hold the same Kraken sub-layers, each a part of
            them, and follow one another: rank = group * tensor_parallel + tensor_index.

    Returns:
        One shard a rank, in order.

    Raises:
        KrakenError: numbers that do not fit the model or one another.
    """
    if devices < 1:
        raise KrakenError(f"--devices {devices}: needs 1 or more")
    if devices > 1 and tensor_parallel == 1:
        config = without_degree(config)
    _check_tensor_parallel(config, devices, tensor_parallel)
    groups = devices // tensor_parallel
    _check_groups(config, devices, groups)
    units = units_of(config)
    if placement is None:
        starts = [units * group // groups for group in range(groups + 1)]
    else:
        _check_placement(config, placement, groups, tensor_parallel)
        starts = list(itertools.accumulate(placement, initial=0))
    shards = [
        Shard(
            config=config,
            first=start,
            count=end - start,
            tensor_index=tensor_index,
            tensor_parallel=tensor_parallel,
            rank=group * tensor_parallel + tensor_index,
            ranks=devices,
        )
        for group, (start, end) in enumerate(itertools.pairwise(starts))
        for tensor_index in range(tensor_parallel)
    ]
    if not all(len(shard.ffn_columns) for shard in shards):
        raise KrakenError(
            f"--devices {devices}: ffn_dim={config.ffn_dim} has no column for each: use fewer"
        )
    return shards


def _part(size: int, index: int, parts: int) -> range:
    """One of several runs, as even as can be, that follow one another and cover ``size``."""
    return range(size * index // parts, size * (index + 1) // parts)


def _unit_name(config: ModelConfig) -> str:
    return "sub-layers" if config.traits.depends_on_degree else "key and value heads"


def _or_another_n(config: ModelConfig) -> str:
    return ", or choose another N with --sublayers" if config.traits.degree_is_a_choice else ""


def _check_tensor_parallel(config: ModelConfig, devices: int, tensor_parallel: int) -> None:
    option = f"--tensor-parallel {tensor_parallel}"
    if tensor_parallel < 1:
        raise KrakenError(f"{option}: needs 1 or more")
    if tensor_parallel == 1:
        return
    if not config.traits.depends_on_degree:
        raise KrakenError(
            f"{option}: a {config.wiring} model is tensor-parallel already: leave it out and raise "
            "--devices"
        )
    for what, size in (
        ("key and value heads", config.kv_heads_per_sublayer),
        ("feed-forward columns", config.ffn_dim),
    ):
        if tensor_parallel > size:
            raise KrakenError(
                f"{option}: a sub-layer of this {config.wiring} model has {size} {what} to share "
                f"out: use at most {size}"
            )
    if devices % tensor_parallel:
        low = devices // tensor_parallel * tensor_parallel
        fits = f"{low} or {low + tensor_parallel}" if low else f"{tensor_parallel}"
        raise KrakenError(f"--devices {devices} is not a multiple of {option}: use {fits}")


def _check_groups(config: ModelConfig, devices: int, groups: int) -> None:
    units, ranks_per_group = units_of(config), devices // groups
    if groups > units:
        among = f" among {groups} groups of {ranks_per_group}" if ranks_per_group > 1 else ""
        raise KrakenError(
            f"--devices {devices}: this {config.wiring} model has {units} {_unit_name(config)} to "
            f"share out{among}: use at most {units * ranks_per_group}{_or_another_n(config)}"
        )


def _check_placement(
    config: ModelConfig, placement: Sequence[int], groups: int, tensor_parallel: int
) -> None:
    option = f"--placement {','.join(map(str, placement))}"
    holder = "rank" if tensor_parallel == 1 else f"group of {tensor_parallel} ranks"
    if len(placement) != groups:
        raise KrakenError(
            f"{option}: {len(placement)} given, but --devices {groups * tensor_parallel} asks for "
            f"{groups}: give one number for each {holder}"
        )
    if min(placement) < 1:
        raise KrakenError(f"{option}: each {holder} needs 1 or more")
    units = units_of(config)
    if sum(placement) != units:
        raise KrakenError(
            f"{option} adds up to {sum(placement)}, but this {config.wiring} model has {units} "
            f"{_unit_name(config)} to share out: make it {units}"
        )
