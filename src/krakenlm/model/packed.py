"""Linear maps on the CPU with weights in the layout that oneDNN's products want.

PyTorch's own product of a bfloat16 matrix reorders the weight on every call, which for one token
costs as much as the product. Reordered once, a weight serves prompts and single tokens alike. The
operators are those that TorchInductor calls; where PyTorch lacks them nothing is packed.

Shape letters: see ``krakenlm.model``.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from krakenlm.model.decoder import Decoder
from krakenlm.model.feed_forward import FeedForward, gelu, gelu_exact
from krakenlm.model.layers import BranchLinear

_TYPICAL_TOKENS = 1
"""What oneDNN is told to expect: its choice for one token is as fast for 512."""

Gelu = Literal["tanh", "none"]
"""GELU's form, as ``torch.nn.functional.gelu`` takes it: ``none`` is exact."""

_APPLIED_ON_THE_WAY_OUT: dict[object, Gelu] = {gelu: "tanh", gelu_exact: "none"}


def can_pack(weight: Tensor) -> bool:
    """Whether this machine's PyTorch has packed products for such a weight."""
    operators = torch.ops.mkldnn
    return (
        weight.device.type == "cpu"
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and all(
            hasattr(operators, name) for name in ("_linear_pointwise", "_reorder_linear_weight")
        )
        and weight.dtype == torch.bfloat16
        and bool(operators._is_mkldnn_bf16_supported())
    )


class PackedMatrix:
    """y = x W^T + b with W packed, and GELU applied on the way out if asked."""

    def __init__(
        self, weight_OI: Tensor, bias_O: Tensor | None = None, *, gelu: Gelu | None = None
    ) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(
            weight_OI.detach().contiguous(), _TYPICAL_TOKENS
        )
        self._bias_O = bias_O
        self._epilogue: tuple[str, list[float], str] = ("none", [], "")
        if gelu is not None:
            self._epilogue = ("gelu", [], gelu)

    def __call__(self, x_PI: Tensor) -> Tensor:
        """x of any leading shape [..., I] to [..., O]."""
        y: Tensor = torch.ops.mkldnn._linear_pointwise(
            x_PI, self._weight, self._bias_O, *self._epilogue
        )
        return y


class PackedLinear(nn.Module):
    """``BranchLinear`` for inference with packed weights: x_SBTI to y_KBTO."""

    def __init__(self, linear: BranchLinear, *, gelu: Gelu | None = None) -> None:
        super().__init__()
        biases: list[Tensor | None] = [None] * linear.weight.shape[0]
        if linear.bias is not None:
            biases[: linear.bias.shape[0]] = linear.bias.detach().unbind()
        self._matrices = [
            PackedMatrix(weight_OI, bias_O, gelu=gelu)
            for weight_OI, bias_O in zip(linear.weight.detach(), biases, strict=True)
        ]

    def forward(self, x_SBTI: Tensor) -> Tensor:
        """Apply each branch's map to its stream; one stream feeds all branches where S is 1."""
        if len(self._matrices) == 1:
            return self._matrices[0](x_SBTI)
        streams = x_SBTI.expand(len(self._matrices), -1, -1, -1)
        return torch.stack(
            [matrix(x_BTI) for matrix, x_BTI in zip(self._matrices, streams, strict=True)]
        )


def pack(decoder: Decoder) -> None:
    """Replace a decoder's linear maps by packed ones, one after the other, where that is possible.

    The plain weights are let go, so at no time are more than one of them held twice. The result
    runs forward only and has no state to save.
    """
    # A list of all modules would hold on to the plain maps.
    for module in [m for m in decoder.modules() if not isinstance(m, BranchLinear)]:
        if isinstance(module, FeedForward) and can_pack(module.up.weight):
            form = _APPLIED_ON_THE_WAY_OUT.get(module.activate)
            if form is not None:
                module.up = PackedLinear(module.up, gelu=form)  # type: ignore[assignment]
                module.activate = nn.Identity()
        for name, child in list(module.named_children()):
            if isinstance(child, BranchLinear) and can_pack(child.weight):
                setattr(module, name, PackedLinear(child))
