"""Linear maps and norms whose weights carry a leading axis over branches.

Shape letters: see ``krakenlm.model``.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Embedding(nn.Embedding):
    """PyTorch's, which draws no weights where there is no memory to hold them.

    On the meta device that would import PyTorch's compiler, and take longer than a short answer.
    """

    def reset_parameters(self) -> None:
        """Draw new weights from N(0, 1)."""
        if not self.weight.is_meta:
            super().reset_parameters()


class BranchLinear(nn.Module):
    """One linear map a branch, applied as one product: x_SBTI to y_KBTO.

    Args:
        branches: K.
        in_features: I.
        out_features: O.
        bias_rows: 0 for none, K for one a branch, or 1 where the outputs will be summed over
            branches, so that the bias counts once.
        init_std: standard deviation of the initial weights.
    """

    def __init__(
        self, branches: int, in_features: int, out_features: int, bias_rows: int, init_std: float
    ) -> None:
        super().__init__()
        self.init_std = init_std
        self.weight = nn.Parameter(torch.empty(branches, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(bias_rows, out_features)) if bias_rows else None

    def reset_parameters(self) -> None:
        """Draw new weights from N(0, init_std); biases are zero."""
        nn.init.normal_(self.weight, std=self.init_std)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_SBTI: Tensor) -> Tensor:
        """Apply each branch's map to its stream; each stream feeds K / S branches in a row."""
        return branch_linear(x_SBTI, self.weight, self.bias)

    def extra_repr(self) -> str:
        """Shape, as ``nn.Linear`` shows it."""
        branches, out_features, in_features = self.weight.shape
        return f"{branches} x ({in_features} -> {out_features}), bias={self.bias is not None}"


def branch_linear(x_SBTI: Tensor, weight_KOI: Tensor, bias: Tensor | None) -> Tensor:
    """y_k = W_k x_s + b_k for all branches k at once, as y_KBTO; K / S in a row read one stream s.

    A bias of one row under several branches belongs to the first: their sum then has it once.
    """
    branches, out_features, in_features = weight_KOI.shape
    streams, batch, tokens, _ = x_SBTI.shape
    if branches == 1:
        return F.linear(x_SBTI[0], weight_KOI[0], None if bias is None else bias[0]).unsqueeze(0)
    if bias is not None and bias.shape[0] != branches:
        bias = F.pad(bias, (0, 0, 0, branches - 1))
    if streams == 1:
        # One wide product over all branches reads x once.
        flat_bias = None if bias is None else bias.flatten()
        y_BTKO = F.linear(x_SBTI[0], weight_KOI.flatten(0, 1), flat_bias)
        return y_BTKO.view(batch, tokens, branches, out_features).movedim(2, 0)
    # Branches of one stream are one wide product, of their weights as they lie.
    wide = branches // streams * out_features
    x_SPI = x_SBTI.reshape(streams, batch * tokens, in_features)
    weight_SIW = weight_KOI.reshape(streams, wide, in_features).transpose(1, 2)
    if bias is None:
        y_SPW = torch.bmm(x_SPI, weight_SIW)
    else:
        y_SPW = torch.baddbmm(bias.reshape(streams, 1, wide), x_SPI, weight_SIW)
    if streams == branches:
        return y_SPW.view(branches, batch, tokens, out_features)
    y_SBTMO = y_SPW.view(streams, batch, tokens, -1, out_features)
    return y_SBTMO.movedim(3, 1).flatten(0, 1)


def sum_in_groups(y_KBTD: Tensor, groups: int) -> Tensor:
    """What ``groups`` wider branches add, each made up of K / groups of these in a row."""
    if groups == y_KBTD.shape[0]:
        return y_KBTD
    return y_KBTD.view(groups, -1, *y_KBTD.shape[1:]).sum(dim=1)


class Norm(nn.Module):
    """LayerNorm or RMSNorm with one set of weights a stream.

    Args:
        streams: S.
        width: D.
        eps: added to the variance.
        bias: LayerNorm's bias; RMSNorm has none.
        rms: RMSNorm (arXiv 1910.07467) instead of LayerNorm.
    """

    def __init__(self, streams: int, width: int, eps: float, bias: bool, rms: bool) -> None:
        super().__init__()
        self.eps = eps
        self.rms = rms
        self.weight = nn.Parameter(torch.empty(streams, width))
        self.bias = nn.Parameter(torch.empty(streams, width)) if bias and not rms else None

    def reset_parameters(self) -> None:
        """Weights one, biases zero."""
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x_SBTD: Tensor) -> Tensor:
        """Normalise over D; one incoming stream fans out to all sets of weights.

        There may be more axes before D, as that over heads.
        """
        if self.weight.shape[0] == 1:
            bias_D = None if self.bias is None else self.bias[0]
            return self._normalise(x_SBTD, self.weight[0], bias_D)
        # For the gradient each call keeps its input, and weights behind it would keep the normal
        # as well. The compiler chooses what to keep by itself.
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return self._normalise_each(x_SBTD)
        normal_SBTD = self._normalise(x_SBTD, None, None)
        shape = (self.weight.shape[0], *(1,) * (x_SBTD.dim() - 2), self.weight.shape[1])
        weight_S11D = self.weight.view(shape)
        if self.bias is None:
            return normal_SBTD * weight_S11D
        return torch.addcmul(self.bias.view(shape), normal_SBTD, weight_S11D)

    def _normalise(self, x: Tensor, weight_D: Tensor | None, bias_D: Tensor | None) -> Tensor:
        if self.rms:
            return F.rms_norm(x, x.shape[-1:], weight_D, self.eps)
        return F.layer_norm(x, x.shape[-1:], weight_D, bias_D, self.eps)

    def _normalise_each(self, x_SBTD: Tensor) -> Tensor:
        weights = self.weight.unbind()
        biases = [None] * len(weights) if self.bias is None else self.bias.unbind()
        streams = x_SBTD.expand(len(weights), *x_SBTD.shape[1:]).unbind()
        return torch.stack(
            [self._normalise(*each) for each in zip(streams, weights, biases, strict=True)]
        )

    def extra_repr(self) -> str:
        """Shape and kind."""
        streams, width = self.weight.shape
        return f"{streams} x {width}, {'RMSNorm' if self.rms else 'LayerNorm'}"


def branch_dropout(y_KBTD: Tensor, p: float, *, training: bool, own_streams: bool) -> Tensor:
    """Dropout on what branches add to their streams.

    Branches that will be summed share one mask, so that their sum is dropped as a whole.
    """
    if not training or p == 0.0:
        return y_KBTD
    if own_streams or y_KBTD.shape[0] == 1:
        return F.dropout(y_KBTD, p)
    return y_KBTD * F.dropout(torch.ones_like(y_KBTD[:1]), p)
