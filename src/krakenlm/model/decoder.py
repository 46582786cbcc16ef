"""The decoder: embeddings, layers joined by a wiring, the final norm.

It knows nothing of processes: a rank builds the decoder of its own part's configuration and
passes the Reducer that sums across ranks. Shape letters: see ``krakenlm.model``.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from krakenlm.config import ModelConfig, layer_runs
from krakenlm.model.attention import Attention, AttentionContext, AttentionCore, Keep
from krakenlm.model.channels import Channels
from krakenlm.model.feed_forward import FeedForward
from krakenlm.model.layers import BranchLinear, Embedding, Norm, sum_in_groups
from krakenlm.model.reduce import Reducer, ScaledReducer
from krakenlm.model.rotary import rotary
from krakenlm.model.wiring import Block, Pass, run, wired

BlockWrapper = Callable[[int, Block], Block]


class Layer(nn.Module):
    """Norms, attention and feed-forward network of all local branches of one layer."""

    def __init__(self, config: ModelConfig, layer_index: int) -> None:
        super().__init__()
        # The authors' scale, 0.02 / sqrt(2 L N): that many branch outputs meet in a stream.
        branches = config.norm_sets if config.output_init == "all-streams" else 1
        outputs_that_meet = 2 * config.num_hidden_layers * branches
        output_std = config.initializer_range * outputs_that_meet**-0.5
        self.norm_1 = _norm(config, config.norm_sets)
        self.attention = Attention(config, layer_index, output_std)
        self.has_two_norms = config.norms_per_layer == 2
        if self.has_two_norms:
            self.norm_2 = _norm(config, config.norm_sets)
        self.feed_forward = FeedForward(config, output_std)

    def attend(self, x_SBTD: Tensor, context: AttentionContext) -> Tensor:
        """Attention on the first norm's output, branches_KBTD."""
        return self.attention(self.norm_1(x_SBTD), context)

    def feed(self, x_SBTD: Tensor) -> Tensor:
        """The feed-forward network on the second norm's output, branches_KBTD."""
        return self.feed_forward(self.norm_2(x_SBTD))

    def attend_and_feed(self, x_SBTD: Tensor, context: AttentionContext) -> Tensor:
        """Attention and feed-forward network side by side, each on its norm, branches_KBTD."""
        normal_SBTD = self.norm_1(x_SBTD)
        kept_SBTD = x_SBTD if self.has_two_norms else normal_SBTD
        if context.keep is not None:
            kept_SBTD = context.keep(kept_SBTD)
        a_KBTD = self.attention(normal_SBTD, context)
        fed = self.feed if self.has_two_norms else self.feed_forward
        return a_KBTD + fed(kept_SBTD)


class Conjunction(BranchLinear):
    """Joins Kraken's streams: concatenated, then one map from N d to d, a part a sub-layer."""

    def __init__(self, config: ModelConfig) -> None:
        width = config.hidden_size
        bias_rows = 1 if config.bias else 0
        super().__init__(config.num_sublayers, width, width, bias_rows, config.initializer_range)
        self._starts_as_mean = config.conjunction_init == "mean"

    def reset_parameters(self) -> None:
        """Draw new weights, or average the streams."""
        super().reset_parameters()
        if self._starts_as_mean:
            branches, width, _ = self.weight.shape
            with torch.no_grad():
                self.weight.copy_(torch.eye(width) / branches)


class Decoder(nn.Module):
    """Token ids to the hidden states that the output head reads.

    Args:
        config: of the whole model, or of one rank's part of it. Parameters are allocated, not
            initialised: load them, or call ``initialise``.
        embed_tokens: what turns token ids into vectors, instead of an embedding held here whole.

    Attributes:
        degree: the N that is computed with. Where N is a choice it may be set to a number that
            divides the configuration's: the numbers are those of the same weights laid out for it.
        runs: which wiring joins which layers, see ``krakenlm.config.layer_runs``. It may be set to
            that of another choice of late layers of the same wiring, and to the runs from one on:
            then layers before it are left out.
    """

    def __init__(self, config: ModelConfig, embed_tokens: nn.Module | None = None) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False
        self.degree = config.num_sublayers
        self.runs = layer_runs(config)
        self.embed_tokens: Any = embed_tokens or Embedding(config.vocab_size, config.hidden_size)
        if config.position == "learned":
            self.embed_positions = Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(Layer(config, i) for i in range(config.num_hidden_layers))
        if config.traits.conjunction:
            self.conjunction = Conjunction(config)
        self.norm = _norm(config, 1)

    def initialise(self) -> None:
        """Draw all weights anew, as ``krakenlm train`` starts from."""
        self.apply(lambda module: initialise_module(module, self.config.initializer_range))

    def forward(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor,
        core: AttentionCore,
        reducer: Reducer,
        wrap: BlockWrapper | None = None,
    ) -> Tensor:
        """Run all layers.

        Args:
            x_BTD: embedded tokens, from ``embed_tokens``.
            positions_BT: position of each token, [B or 1, T].
            core: attention with its mask and cache.
            reducer: sums branches, here and across ranks.
            wrap: replaces each layer's block, for instance by one that records times.

        Returns:
            Hidden states h_BTD behind the final norm.
        """
        return self.finish(run(self.steps(x_BTD, positions_BT, core, reducer, wrap=wrap)))

    def steps(
        self,
        x_BTD: Tensor,
        positions_BT: Tensor,
        core: AttentionCore,
        reducer: Reducer,
        *,
        wrap: BlockWrapper | None = None,
        keep: Keep | None = None,
    ) -> Pass:
        """All layers as a pass for ``wiring.run`` or ``wiring.interleave``.

        Args:
            x_BTD: as in ``forward``, like the arguments not named here.
            positions_BT: as there.
            core: as there; with ``keep`` it meets fewer queries than keys in the last layer.
            reducer: as there.
            wrap: as there.
            keep: the positions that matter behind the last layer's attention: for the next
                token, each prompt's last.

        Returns:
            A pass whose result is x_1BTD before ``finish``.
        """
        config = self.config
        turns = None
        if config.position == "learned":
            x_BTD = x_BTD + self.embed_positions(positions_BT)
        else:
            turns = rotary(positions_BT, config)
        x_BTD = F.dropout(x_BTD, config.dropout, self.training)
        recompute = self.gradient_checkpointing and self.training
        whole, last = AttentionContext(core, turns, None), AttentionContext(core, turns, keep)
        final = config.num_hidden_layers - 1
        blocks: list[Block] = [
            _BoundLayer(
                layer,
                last if index == final else whole,
                Channels.of_layer(config, index),
                recompute=recompute,
                degree=self.degree,
            )
            for index, layer in enumerate(self._layers())
        ]
        if wrap is not None:
            blocks = [wrap(index, block) for index, block in enumerate(blocks)]
        if config.traits.own_streams and config.sum_scale != 1.0:
            reducer = ScaledReducer(reducer, config.sum_scale)
        return wired(self.runs, blocks, x_BTD.unsqueeze(0), reducer, self._join)

    def finish(self, x_1BTD: Tensor) -> Tensor:
        """What the output head reads, h_BTD."""
        h_BTD: Tensor = self.norm(x_1BTD)
        return h_BTD.squeeze(0)

    def _layers(self) -> Iterable[Layer]:
        return self.layers  # type: ignore[return-value]

    def _join(self, y_KBTD: Tensor) -> Tensor:
        """The conjunction of Kraken's streams; a single stream passes through."""
        return self.conjunction(y_KBTD) if self.config.traits.conjunction else y_KBTD


class _BoundLayer:
    """A layer with one forward pass's context, as ``degree`` branches.

    Recomputes activations for the gradient if asked.
    """

    def __init__(
        self,
        layer: Layer,
        context: AttentionContext,
        message: Channels,
        *,
        recompute: bool,
        degree: int,
    ) -> None:
        self.message = message
        self._layer = layer
        self._context = context
        self._recompute = recompute
        self._degree = degree

    def keep(self, x_SBTD: Tensor) -> Tensor:
        keep = self._context.keep
        return x_SBTD if keep is None else keep(x_SBTD)

    def attend(self, x_SBTD: Tensor) -> Tensor:
        return self._run(self._layer.attend, x_SBTD, self._context)

    def feed(self, x_SBTD: Tensor) -> Tensor:
        return self._run(self._layer.feed, x_SBTD)

    def attend_and_feed(self, x_SBTD: Tensor) -> Tensor:
        return self._run(self._layer.attend_and_feed, x_SBTD, self._context)

    def _run(self, function: Callable[..., Tensor], *arguments: Any) -> Tensor:
        y_KBTD: Tensor
        if self._recompute:
            y_KBTD = checkpoint(function, *arguments, use_reentrant=False)
        else:
            y_KBTD = function(*arguments)
        return sum_in_groups(y_KBTD, self._degree)


def initialise_module(module: nn.Module, std: float) -> None:
    """Draw one module's own parameters: N(0, std), the authors' scale for branch outputs."""
    if isinstance(module, BranchLinear | Norm):
        module.reset_parameters()
    elif isinstance(module, nn.Embedding | nn.Linear):
        nn.init.normal_(module.weight, std=std)


def _norm(config: ModelConfig, streams: int) -> Norm:
    return Norm(
        streams, config.hidden_size, config.norm_eps, config.bias, rms=config.norm == "rmsnorm"
    )
