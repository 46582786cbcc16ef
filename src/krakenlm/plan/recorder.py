"""Writes down every operator of a pass over tensors without memory.

PyTorch's dispatch hook shows what the modules really call, with shapes. Two calls are taken as the
one kernel that they are on a device, which without memory they would not be: fused attention and
RMSNorm. Hooks on the modules say what an operator is for.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from krakenlm.model.attention import Attention
from krakenlm.model.layers import BranchLinear, Norm
from krakenlm.plan.program import Begin, GroupName, Item, Kind, Operator, PartName, Wait, Work
from krakenlm.plan.shapes import quick_result

_NO_KERNEL = {"_unsafe_view", "alias", "detach", "lift_fresh", "_reshape_alias"}
_GEMMS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}
"""Products, and which argument is their first factor."""
_KINDS: dict[str, Kind] = {"gelu": "gelu", "_softmax": "softmax"}


class Recorder:
    """Collects the items of one pass."""

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.collectives = 0
        self._parts: list[PartName] = ["other"]
        self._name, self._layer = "", None
        self._under_way = 0
        self._pending: list[Operator] = []
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}
        self.live_bytes = 0
        self.peak_bytes = 0

    def add(self, kind: Kind, shape: tuple[int, ...], flops: int, nbytes: int) -> None:
        """An operator, for what is being computed."""
        self._pending.append(Operator(self._parts[-1], kind, shape, flops, nbytes))

    def begin(self, group: GroupName, nbytes: int, *, gathers: bool = False) -> int:
        """A collective is begun; its number."""
        self.flush()
        number = self.collectives
        self.collectives += 1
        self._under_way += 1
        self.items.append(Begin(number, group, nbytes, gathers))
        return number

    def wait(self, number: int) -> None:
        """And awaited."""
        self.flush()
        self._under_way -= 1
        self.items.append(Wait(number))

    def flush(self) -> None:
        """What comes next is other work."""
        if self._pending:
            work = Work(tuple(self._pending), self._name, self._layer, self._under_way > 0)
            self.items.append(work)
            self._pending = []

    def splice(self, items: list[Item], layer: int) -> None:
        """Repeat what was recorded of a block's part, as that of another layer."""
        self.flush()
        first = next((i.number for i in items if isinstance(i, Begin)), 0)
        shift = self.collectives - first
        for item in items:
            if isinstance(item, Work):
                self.items.append(item._replace(layer=layer, overlapped=self._under_way > 0))
            else:
                self.items.append(item._replace(number=item.number + shift))
        self.collectives += sum(isinstance(item, Begin) for item in items)

    @contextmanager
    def within(self, name: str, layer: int) -> Iterator[None]:
        """Meanwhile a part of a block is computed."""
        self.flush()
        before = self._name, self._layer
        self._name, self._layer = name, layer  # type: ignore[assignment]
        yield
        self.flush()
        self._name, self._layer = before

    @contextmanager
    def part(self, name: PartName) -> Iterator[None]:
        """Meanwhile operators are for this."""
        self._parts.append(name)
        yield
        self._parts.pop()

    def enter(self, name: PartName) -> None:
        """As ``part``, until ``leave``."""
        self._parts.append(name)

    def leave(self) -> None:
        """See ``enter``."""
        self._parts.pop()

    def made(self, outputs: list[Tensor]) -> None:
        """Tensors came to be: they hold memory until nobody has them any more."""
        for key in [key for key, (storage, _) in self._live.items() if _is_gone(storage)]:
            self.live_bytes -= self._live.pop(key)[1]
        for x in outputs:
            storage = x.untyped_storage()
            key = storage._cdata
            if key not in self._live:
                self._live[key] = (StorageWeakRef(storage), storage.nbytes())  # type: ignore[no-untyped-call]
                self.live_bytes += storage.nbytes()
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)


def _is_gone(storage: StorageWeakRef) -> bool:
    gone: bool = storage.expired()  # type: ignore[no-untyped-call]
    return gone


class Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """While it is entered, operators that write to tensors without memory are recorded."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._recorder = recorder

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # otherwise the first operator imports the compiler, for more than a second

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        results = quick_result(name, args, kwargs)
        if results is None:
            results = func(*args, **kwargs)
        if func.is_view or name in _NO_KERNEL:
            return results
        outputs = [x for x in _tensors(results) if x.is_meta]
        if not outputs:
            return results  # on the host
        if not func._schema.is_mutable:
            self._recorder.made(outputs)
        if name.startswith(("empty", "new_empty")):
            return results
        if name in _GEMMS:
            self._gemm(args[_GEMMS[name] :], outputs[0])
        else:
            self._other(name, _tensors((args, kwargs)), outputs)
        return results

    def _gemm(self, factors: Any, output: Tensor) -> None:
        a, b = factors[:2]
        groups = a.shape[0] if a.dim() == 3 else 1
        m, k, n = a.shape[-2], a.shape[-1], b.shape[-1]
        nbytes = (a.numel() + b.numel() + output.numel()) * output.element_size()
        self._recorder.add("gemm", (groups, m, k, n), 2 * groups * m * k * n, nbytes)

    def _other(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> None:
        if name == "embedding":
            inputs = [*inputs[1:], outputs[0]]  # the rows that are looked up, not the table
        if name.startswith("index_put"):  # writes a few rows of its first
            inputs, outputs = inputs[1:], inputs[-1:]
        nbytes = sum(x.numel() * x.element_size() for x in [*inputs, *outputs])
        if name == "copy_":
            nbytes -= outputs[0].numel() * outputs[0].element_size()  # written, and not read
        if name == "native_layer_norm":
            width = outputs[0].shape[-1]
            self._recorder.add("norm", (outputs[0].numel() // width, width), 0, nbytes)
        else:
            self._recorder.add(_kind(name, inputs), (), 0, nbytes)


def _kind(name: str, inputs: list[Tensor]) -> Kind:
    """Of an operator that is no product and no norm."""
    if name in ("copy_", "clone"):
        return "move" if all(x.is_contiguous() for x in inputs) else "copy"
    return _KINDS.get(name, "move")


def _tensors(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


class _FusedKernels(TorchFunctionMode):
    """Fused attention and RMSNorm as one operator each."""

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(
                *args, masked=bool(kwargs["is_causal"] or kwargs["attn_mask"] is not None)
            )
        if func is F.rms_norm:
            return self._norm(args[0])
        return func(*args, **kwargs)

    def _attention(self, q_BHTE: Tensor, k_BGPE: Tensor, v_BGPE: Tensor, *, masked: bool) -> Tensor:
        batch, heads, queries, width = q_BHTE.shape
        groups, keys = k_BGPE.shape[1:3]
        # By token, as the queries are laid out.
        o_BHTE = q_BHTE.new_empty((batch, queries, heads, width)).transpose(1, 2)
        # The last query sees all keys, each one before it one key less.
        hidden = queries * (queries - 1) // 2 if masked else 0
        flops = 4 * batch * heads * width * (queries * keys - hidden)
        nbytes = sum(x.numel() * x.element_size() for x in (q_BHTE, k_BGPE, v_BGPE, o_BHTE))
        shape = (batch, heads, groups, queries, keys, width)
        self._recorder.add("attention", shape, flops, nbytes)
        return o_BHTE

    def _norm(self, x: Tensor) -> Tensor:
        normal = torch.empty_like(x)
        width = x.shape[-1]
        nbytes = 2 * x.numel() * x.element_size()
        self._recorder.add("rms_norm", (x.numel() // width, width), 0, nbytes)
        return normal


@contextmanager
def recording(recorder: Recorder, decoder: nn.Module) -> Iterator[None]:
    """Record what is done with a decoder; the hooks on its modules are gone afterwards."""
    scopes: dict[type[nn.Module], PartName] = {
        Norm: "norm",
        BranchLinear: "gemm",
        Attention: "attention",
    }
    fused = _FusedKernels(recorder)
    handles = []
    try:
        for module in decoder.modules():
            for kind, part in scopes.items():
                if isinstance(module, kind):
                    handles += _hook(module, recorder, part, fused)
        with torch.no_grad(), Recording(recorder):
            yield
    finally:
        for handle in handles:
            handle.remove()
    recorder.flush()


def _hook(
    module: nn.Module, recorder: Recorder, part: PartName, fused: _FusedKernels
) -> list[torch.utils.hooks.RemovableHandle]:
    # Watching every call is slow, so only where one of the fused ones may come.
    watched = not isinstance(module, BranchLinear)

    def before(*_: Any) -> None:
        recorder.enter(part)
        if watched:
            fused.__enter__()  # type: ignore[no-untyped-call]

    def after(*_: Any) -> None:
        if watched:
            fused.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        recorder.leave()

    return [module.register_forward_pre_hook(before), module.register_forward_hook(after)]


def for_part(
    recorder: Recorder, part: PartName, function: Callable[[Tensor], Tensor]
) -> Callable[[Tensor], Tensor]:
    """The same function, whose operators are for this."""
    return partial(_called, recorder, part, function)


def _called(
    recorder: Recorder, part: PartName, function: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    with recorder.part(part):
        return function(x)
