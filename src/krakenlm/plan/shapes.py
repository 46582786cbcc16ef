"""Results of common operators without memory, and without asking PyTorch for their shapes.

On the meta device PyTorch answers for them in Python, and the first answer imports its compiler,
for more than a second. Only plain cases are answered here, those whose inputs lie in order and
whose result is dense; for all others PyTorch is asked. The tests compare with what it says.
"""

from collections.abc import Callable, Sequence
from functools import reduce
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

_META = torch.device("meta")
_Answer = Callable[[Any, dict[str, Any]], Any]


def quick_result(name: str, args: Any, kwargs: dict[str, Any]) -> Any:
    """The result of ``aten``'s operator of this name, or None where PyTorch must be asked."""
    answer = _ANSWERS.get(name)
    return None if answer is None else answer(args, kwargs)


def _are_plain(tensors: Sequence[Tensor]) -> bool:
    return all(x.is_meta and (x.is_contiguous() or _is_in_order(x)) for x in tensors)


def _is_in_order(x: Tensor) -> bool:
    """Whether the axes follow one another in memory, gaps or none: what is made of it is dense."""
    strides = [stride for size, stride in zip(x.shape, x.stride(), strict=True) if size > 1]
    return all(a >= b > 0 for a, b in pairwise(strides))


def _new(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=_META)


def _broadcast(tensors: Sequence[Tensor]) -> tuple[int, ...]:
    # Not torch.broadcast_shapes, which imports what this module avoids.
    axes = max(x.dim() for x in tensors)
    padded = [(1,) * (axes - x.dim()) + tuple(x.shape) for x in tensors]
    return tuple(max(sizes) for sizes in zip(*padded, strict=True))


def _pointwise(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    tensors = [x for x in args if isinstance(x, Tensor)]
    if not _are_plain(tensors):
        return None
    a, b = args[0], args[1] if len(args) > 1 else args[0]
    dtype = torch.result_type(a, b)
    return _new(_broadcast(tensors), dtype)


def _quotient(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    return _pointwise(args, kwargs) if args[0].is_floating_point() else None


def _arange(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    if torch.device(kwargs.get("device") or "cpu") != _META:
        return None
    return _new((len(range(*args)),), kwargs.get("dtype") or torch.int64)


def _embedding(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    table_VD, ids = args[:2]
    if not _are_plain([table_VD]) or not ids.is_meta:
        return None
    return _new((*ids.shape, table_VD.shape[1]), table_VD.dtype)


def _layer_norm(args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, ...] | None:
    x, normalised = args[:2]
    if not _are_plain([x]):
        return None
    rows = (*x.shape[: x.dim() - len(normalised)], *(1 for _ in normalised))
    return _new(x.shape, x.dtype), _new(rows, torch.float32), _new(rows, torch.float32)


def _product(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    a, b = args[:2]
    if not (a.is_meta and b.is_meta):
        return None
    return _new((*a.shape[:-1], b.shape[-1]), a.dtype)


def _product_and_bias(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    return _product(args[1:], kwargs)


def _softmax(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    x, _, to_float = args
    return _new(x.shape, x.dtype) if _are_plain([x]) and not to_float else None


def _cat(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    parts, axis = args[0], args[1] if len(args) > 1 else 0
    if not _are_plain(parts):
        return None
    shape = list(parts[0].shape)
    shape[axis] = sum(x.shape[axis] for x in parts)
    return _new(shape, reduce(torch.promote_types, [x.dtype for x in parts]))


def _stack(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    parts, axis = args[0], args[1] if len(args) > 1 else 0
    if not _are_plain(parts):
        return None
    shape = list(parts[0].shape)
    shape.insert(axis, len(parts))
    return _new(shape, parts[0].dtype)


def _reduced(x: Tensor, axes: Any, keepdim: bool) -> list[int]:
    gone = {axis % x.dim() for axis in ([axes] if isinstance(axes, int) else axes)}
    kept = [None if i in gone else size for i, size in enumerate(x.shape)]
    return [1 if size is None else size for size in kept if keepdim or size is not None]


def _reduction(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    if len(args) < 2 or not _are_plain(args[:1]) or kwargs:
        return None
    return _new(_reduced(args[0], args[1], len(args) > 2 and args[2]), args[0].dtype)


def _max_with_index(args: Any, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor] | None:
    values = _reduction(args, kwargs)
    return None if values is None else (values, _new(values.shape, torch.int64))


def _compare(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    tensors = [x for x in args if isinstance(x, Tensor)]
    if not all(x.is_meta for x in tensors):
        return None
    return _new(_broadcast(tensors), torch.bool)


def _same(args: Any, kwargs: dict[str, Any]) -> Tensor | None:
    is_plain = _are_plain(args[:1]) and kwargs.get("dtype") in (None, args[0].dtype)
    return _new(args[0].shape, args[0].dtype) if is_plain else None


_ANSWERS: dict[str, _Answer] = {
    **dict.fromkeys(("add", "sub", "mul", "pow"), _pointwise),
    "div": _quotient,
    **dict.fromkeys(("neg", "cos", "sin", "silu", "gelu"), _same),
    **dict.fromkeys(("gt", "lt"), _compare),
    **dict.fromkeys(("masked_fill", "clone", "empty_like"), _same),
    **dict.fromkeys(("mm", "bmm"), _product),
    **dict.fromkeys(("addmm", "baddbmm"), _product_and_bias),
    "arange": _arange,
    "embedding": _embedding,
    "native_layer_norm": _layer_norm,
    "_softmax": _softmax,
    "cat": _cat,
    "stack": _stack,
    **dict.fromkeys(("amax", "amin", "sum"), _reduction),
    "max": _max_with_index,
}
