"""What the architectures have in common and where they differ, as data.

How each one computes is a function in ``krakenlm.model.wiring``. What follows for parameters,
messages and caches stands here, so that sizes can be reasoned about without loading torch.
"""

from dataclasses import dataclass
from typing import Literal, get_args

WiringName = Literal[
    "kraken",
    "standard",
    "parallel",
    "ladder",
    "shared",
    "kraken-shared",
    "lagged",
    "lagged-layer",
]


@dataclass(frozen=True, kw_only=True)
class WiringTraits:
    """Structure of one architecture.

    Attributes:
        own_norms: every branch has norms and output biases of its own, as Kraken's sub-layers have:
            N is fixed in the weights. Otherwise the branches share them, as tensor-parallel shards
            of one layer do.
        own_streams: every branch carries a residual stream of its own, and the streams are summed.
            Otherwise the branches add to one that they share.
        depends_on_degree: the function depends on N, the number of branches, so that a rank holds
            whole branches. Otherwise N branches are only a way to store one layer, which any
            number of ranks can share out by its heads.
        norms_per_layer: 2, or 1 where attention and feed-forward read the same normalised input
            unless ``parallel_norms`` of the configuration says otherwise.
        conjunction: the branches' streams are joined by a linear map before the final norm.
        allreduces_per_layer: sums over branches that each layer begins.
        hidden_allreduces: of all of them in a forward pass, how many have compute to hide behind,
            as (per layer, once per model).
        with_one_branch: where the function depends on N: with N = 1 it is that of this wiring,
            which does not.
        awaited_as: the wiring of the same weights that awaits the sums which this one hides; a
            model may have layers of both kinds, ``late_layers`` of the configuration.
        parted_messages: a layer's sum may carry a part of the channels, ``message_parts`` of the
            configuration.
    """

    own_norms: bool
    own_streams: bool
    depends_on_degree: bool
    norms_per_layer: Literal[1, 2]
    conjunction: bool
    allreduces_per_layer: int
    hidden_allreduces: tuple[int, int]
    with_one_branch: WiringName | None = None
    awaited_as: WiringName | None = None
    parted_messages: bool = False

    @property
    def degree_is_a_choice(self) -> bool:
        """The function depends on N and the weights do not: N is chosen when a model is loaded."""
        return self.depends_on_degree and not self.own_norms

    def allreduces(self, num_hidden_layers: int) -> int:
        """AllReduces in one forward pass.

        Where one of a layer is begun in the next, the last one comes after the layers: for Kraken
        that is the conjunction's.
        """
        return self.allreduces_per_layer * num_hidden_layers

    def hidden(self, num_hidden_layers: int) -> int:
        """How many of ``allreduces`` run behind compute."""
        per_layer, once = self.hidden_allreduces
        return per_layer * num_hidden_layers + once


WIRINGS: dict[WiringName, WiringTraits] = {
    # Prabhakar, Zhang, Wentzlaff, arXiv 2408.07802
    "kraken": WiringTraits(
        own_norms=True,
        own_streams=True,
        depends_on_degree=True,
        norms_per_layer=2,
        conjunction=True,
        allreduces_per_layer=1,
        hidden_allreduces=(1, -1),
    ),
    # Megatron-LM's tensor parallelism, arXiv 1909.08053
    "standard": WiringTraits(
        own_norms=False,
        own_streams=False,
        depends_on_degree=False,
        norms_per_layer=2,
        conjunction=False,
        allreduces_per_layer=2,
        hidden_allreduces=(0, 0),
    ),
    # GPT-J and PaLM (arXiv 2204.02311, section 2)
    "parallel": WiringTraits(
        own_norms=False,
        own_streams=False,
        depends_on_degree=False,
        norms_per_layer=1,
        conjunction=False,
        allreduces_per_layer=1,
        hidden_allreduces=(0, 0),
    ),
    # Ladder Residual, arXiv 2501.06589: all but the last hide behind the next half block
    "ladder": WiringTraits(
        own_norms=False,
        own_streams=False,
        depends_on_degree=False,
        norms_per_layer=2,
        conjunction=False,
        allreduces_per_layer=2,
        hidden_allreduces=(2, -1),
        awaited_as="standard",
    ),
    # Kraken's schedule over one stream: each branch reads its own last output at once and the
    # others' a layer later
    "shared": WiringTraits(
        own_norms=False,
        own_streams=False,
        depends_on_degree=True,
        norms_per_layer=2,
        conjunction=False,
        allreduces_per_layer=1,
        hidden_allreduces=(1, -1),
        with_one_branch="standard",
        awaited_as="standard",
        parted_messages=True,
    ),
    # Kraken's sub-layers and message with the recursion of shared: no conjunction
    "kraken-shared": WiringTraits(
        own_norms=True,
        own_streams=False,
        depends_on_degree=True,
        norms_per_layer=2,
        conjunction=False,
        allreduces_per_layer=1,
        hidden_allreduces=(1, -1),
        with_one_branch="standard",
        parted_messages=True,
    ),
    # The same with no output of a branch's own: attention reads the stream of a layer before
    "lagged": WiringTraits(
        own_norms=False,
        own_streams=False,
        depends_on_degree=False,
        norms_per_layer=2,
        conjunction=False,
        allreduces_per_layer=1,
        hidden_allreduces=(1, -1),
        awaited_as="standard",
    ),
    # A parallel layer that reads the stream of a layer before
    "lagged-layer": WiringTraits(
        own_norms=False,
        own_streams=False,
        depends_on_degree=False,
        norms_per_layer=1,
        conjunction=False,
        allreduces_per_layer=1,
        hidden_allreduces=(1, -1),
        awaited_as="parallel",
    ),
}

assert set(WIRINGS) == set(get_args(WiringName))
