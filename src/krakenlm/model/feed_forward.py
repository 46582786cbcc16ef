"""The feed-forward network of all local branches at once: GELU of either form, or SwiGLU.

Shape letters: see ``krakenlm.model``.
"""

from collections.abc import Callable

from torch import Tensor, nn
from torch.nn import functional as F

from krakenlm.config import ModelConfig
from krakenlm.model.layers import BranchLinear, branch_dropout


class FeedForward(nn.Module):
    """W_down gelu(W_up x), or with SwiGLU (arXiv 2002.05202) W_down (silu(W_gate x) * W_up x).

    Args:
        config: of the whole model, or of one rank's part of it.
        output_std: standard deviation of ``down``'s initial weights.
    """

    def __init__(self, config: ModelConfig, output_std: float) -> None:
        super().__init__()
        branches = config.num_sublayers
        self.activate = ACTIVATIONS[config.activation]
        self.dropout = config.dropout
        self.own_streams = config.traits.own_streams
        # With SwiGLU the gate's rows come first, then the up map's.
        self.up = BranchLinear(
            branches,
            config.hidden_size,
            config.ffn_dim * (2 if config.activation == "swiglu" else 1),
            branches if config.bias else 0,
            config.initializer_range,
        )
        self.down = BranchLinear(
            branches,
            config.ffn_dim,
            config.hidden_size,
            config.norm_sets if config.bias else 0,
            output_std,
        )

    def forward(self, x_SBTD: Tensor) -> Tensor:
        """What the network adds to each branch, as branches_KBTD."""
        inner_KBTF = self.activate(self.up(x_SBTD))
        return branch_dropout(
            self.down(inner_KBTF),
            self.dropout,
            training=self.training,
            own_streams=self.own_streams,
        )


def gelu(up_KBTF: Tensor) -> Tensor:
    """GELU in its tanh form, as GPT-2 has it."""
    return F.gelu(up_KBTF, approximate="tanh")


def gelu_exact(up_KBTF: Tensor) -> Tensor:
    """GELU by the error function, as GPT-NeoX has it."""
    return F.gelu(up_KBTF)


def swiglu(gate_and_up_KBTF: Tensor) -> Tensor:
    """silu(gate) * up, from both side by side."""
    gate_KBTF, up_KBTF = gate_and_up_KBTF.chunk(2, dim=-1)
    return F.silu(gate_KBTF) * up_KBTF


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "gelu-exact": gelu_exact,
    "swiglu": swiglu,
}
