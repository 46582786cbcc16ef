"""A forward pass recorded once and replayed: what CUDA graphs are on a GPU, for the CPU.

For a single token the Python between two operators takes longer than many an operator. A tape
runs a pass once under PyTorch's dispatch hook and writes down every operator with the tensors it
read and wrote. A replay calls the operators alone, and they write to the same tensors again: no
module is entered, and no memory is asked for where an operator can write to a given tensor.

What a pass reads from outside must therefore stay in place (weights, cache, the input tensors),
and nothing in it may depend on values in Python.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from krakenlm.model.reduce import Pending, Reducer

Step = Callable[[], object]


class Tape:
    """One recorded pass."""

    def __init__(self) -> None:
        self._steps: list[Step] = []
        self.result = torch.empty(0)
        self.copies = 0
        """Operators whose results are copied into place, since they cannot write there."""

    def record(self, run: Callable[[Callable[[Reducer], Reducer]], Tensor]) -> Tensor:
        """Run a pass and keep its operators.

        Args:
            run: the pass; it is handed a function that makes a Reducer recordable, and must sum
                through what that returns.

        Returns:
            The pass's result; later replays write to the same tensor.
        """
        recording = _Recording(self)
        with torch.no_grad(), recording:
            self.result = run(lambda reducer: _RecordedReducer(reducer, recording))
        return self.result

    @torch.no_grad()
    def replay(self) -> Tensor:
        """Run the operators again, on what the tensors they read hold now."""
        for step in self._steps:
            step()
        return self.result

    def add(self, step: Step) -> None:
        """Something to do at this place of every replay."""
        self._steps.append(step)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, tape: Tape) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.tape = tape
        self._paused = False

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Meanwhile, operators are not written down."""
        self._paused = True
        yield
        self._paused = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Otherwise the first operator imports torch._dynamo, to keep the compiler away from here:
        # more than a second between the first token and the second.
        return False

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        results = func(*args, **kwargs)
        if not self._paused:
            self._write_down(func, args, kwargs, results)
        return results

    def _write_down(self, func: Any, args: Any, kwargs: dict[str, Any], results: Any) -> None:
        inputs = _tensors((args, kwargs))
        outputs = _tensors(results)
        if func._schema.is_mutable:
            self.tape.add(lambda: func(*args, **kwargs))
            return
        places = {x.untyped_storage().data_ptr() for x in inputs if not x.is_mkldnn}
        if outputs and all(x.untyped_storage().data_ptr() in places for x in outputs):
            return  # another view of what is there
        variant = _writing_variant(func)
        if variant is not None:
            overload, names = variant
            out = dict(zip(names, outputs, strict=True))
            self.tape.add(lambda: overload(*args, **kwargs, **out))
            return
        self.tape.copies += 1
        if len(outputs) == 1:
            (output,) = outputs
            self.tape.add(lambda: output.copy_(func(*args, **kwargs)))
        else:
            self.tape.add(lambda: _copy_all(outputs, func(*args, **kwargs)))


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def _copy_all(outputs: list[Tensor], results: Any) -> None:
    for output, result in zip(outputs, _tensors(results), strict=True):
        output.copy_(result)


@cache
def _writing_variant(func: Any) -> tuple[Any, list[str]] | None:
    """The overload that takes the same arguments and writes to given tensors, if there is one."""
    wanted = [(a.name, str(a.type)) for a in func._schema.arguments]
    for name in func.overloadpacket.overloads():
        candidate = getattr(func.overloadpacket, name)
        arguments = candidate._schema.arguments
        outs = [a.name for a in arguments if a.is_out]
        if outs and [(a.name, str(a.type)) for a in arguments if not a.is_out] == wanted:
            return candidate, outs
    return None


class _RecordedReducer:
    """Sums really while recording, and puts the begin and the wait on the tape."""

    def __init__(self, inner: Reducer, recording: _Recording) -> None:
        self._inner = inner
        self._recording = recording

    def begin(self, branches_KBTD: Tensor) -> Pending:
        recorded = _RecordedPending(self._inner, branches_KBTD, self._recording)
        with self._recording.paused():
            recorded.begin()
        self._recording.tape.add(recorded.begin)
        return recorded


class _RecordedPending:
    def __init__(self, inner: Reducer, branches_KBTD: Tensor, recording: _Recording) -> None:
        self._inner = inner
        self._branches_KBTD = branches_KBTD
        self._recording = recording
        self._pending: Pending | None = None

    def begin(self) -> None:
        self._pending = self._inner.begin(self._branches_KBTD)

    def wait(self) -> Tensor:
        assert self._pending is not None
        with self._recording.paused():
            total_1BTD = self._pending.wait().clone()
        self._recording.tape.add(lambda: self._wait_again(total_1BTD))
        return total_1BTD

    def _wait_again(self, total_1BTD: Tensor) -> None:
        assert self._pending is not None
        total_1BTD.copy_(self._pending.wait())
