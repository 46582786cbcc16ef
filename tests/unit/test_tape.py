"""A recorded pass replayed, against running it again."""

import subprocess
import sys

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tiny
from krakenlm.config import ModelConfig
from krakenlm.engine.engine import Engine
from krakenlm.engine.tape import Tape
from krakenlm.model.reduce import LocalReducer
from krakenlm.ranks.launch import Rank

MODELS = tiny.FUNCTIONS | tiny.FAMILIES | tiny.ADAPTED
ALONE = Rank(0, 1, torch.device("cpu"), lambda message: None)


@torch.library.custom_op("krakenlm_test::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    """An operator that cannot write to a given tensor."""
    return 2 * x


@torch.library.custom_op("krakenlm_test::halves", mutates_args=())
def halves(x: Tensor) -> tuple[Tensor, Tensor]:
    """As ``doubled``, with two results."""
    middle = x.shape[0] // 2
    return x[:middle].clone(), x[middle:].clone()


def linear_and_norm(x):
    weight = torch.linspace(-1, 1, 40, dtype=x.dtype).view(5, 8)
    return F.gelu(F.layer_norm(F.linear(x, weight), (5,)), approximate="tanh")


def views_and_in_place(x):
    parts = x.chunk(2, dim=-1)
    y = torch.cat([parts[1], parts[0] * 2], dim=-1).transpose(0, 1)
    y += 1
    y[2:4] *= 3
    return y.reshape(-1)


def constants(x):
    total = torch.zeros(6, 8, dtype=x.dtype)
    total += x
    columns = torch.arange(8)
    return (total * columns).masked_fill(columns > 5, -1.0)


def attention(x):
    return (x @ x.transpose(0, 1)).softmax(-1) @ x


def several_results(x):
    highest = x.max(dim=-1)
    best = x.topk(3, dim=-1)
    return torch.cat([highest.values[:, None], best.values, best.indices.to(x.dtype)], dim=-1)


def not_writable(x):
    first, second = halves(doubled(x))
    return doubled(first) - second


def unchanged(x):
    return x


PASSES = [
    linear_and_norm, views_and_in_place, constants, attention, several_results, not_writable,
    unchanged,
]  # fmt: skip


@pytest.mark.parametrize("function", PASSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_replay_on_new_input_equals_running_anew(function, dtype):
    torch.manual_seed(0)
    x = torch.randn(6, 8).to(dtype)
    tape = Tape()
    assert torch.equal(tape.record(lambda recordable: function(x)), function(x))
    place = tape.result.data_ptr()
    for _ in range(3):
        x.copy_(torch.randn(6, 8))
        found = tape.replay()
        assert found is tape.result
        assert found.data_ptr() == place
        assert torch.equal(found, function(x))


def test_operators_that_cannot_write_to_a_given_tensor_are_copied():
    x = torch.randn(6, 8)
    tape = Tape()
    tape.record(lambda recordable: not_writable(x))
    assert tape.copies == 3
    tape = Tape()
    tape.record(lambda recordable: linear_and_norm(x + 0) + attention(x).sum())
    assert tape.copies == 1  # the weight that ``linspace`` makes


def test_writes_to_a_cache_happen_again():
    x, position, memory = torch.randn(1, 4), torch.zeros(1, 1, dtype=torch.long), torch.zeros(5, 4)

    def store(recordable):
        memory.scatter_(0, position.expand(1, 4), x)
        memory[4] += 1
        return memory[:4].sum(0)

    tape = Tape()
    tape.record(store)
    wanted = memory.clone()
    for step in (1, 2, 1):
        x.normal_()
        position.fill_(step)
        found = tape.replay()
        wanted[step] = x[0]
        wanted[4] += 1
        assert torch.equal(memory, wanted)
        assert torch.equal(found, wanted[:4].sum(0))


def test_recording_leaves_no_trace_on_later_operators():
    x = torch.ones(3)
    tape = Tape()
    tape.record(lambda recordable: x + 1)
    (x + 2).add_(5)
    assert torch.equal(tape.replay(), torch.full((3,), 2.0))


def test_recording_leaves_the_compiler_alone():
    """Its import would take a second between the first token and the second."""
    program = """
import sys, torch
from krakenlm.engine.tape import Tape
x = torch.ones(3)
Tape().record(lambda recordable: x + 1)
sys.exit("torch._dynamo" in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


class LateReducer:
    """Sums at the wait what was there at begin, and writes down the order of both."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.begun = 0

    def begin(self, branches):
        self.begun += 1
        self.calls.append(f"begin {self.begun}")
        return _Late(self, self.begun, branches.clone())


class _Late:
    def __init__(self, reducer: LateReducer, number: int, seen: Tensor) -> None:
        self.reducer, self.number, self.seen = reducer, number, seen

    def wait(self):
        self.reducer.calls.append(f"wait {self.number}")
        return self.seen.sum(0, keepdim=True)


def test_sums_are_begun_and_awaited_again_in_order_and_at_their_places():
    x = torch.randn(2, 1, 3, 4)
    reducer = LateReducer()

    def two_under_way(to_recordable):
        recordable = to_recordable(reducer)
        y = x * 2
        first = recordable.begin(y)
        z = y + 1
        second = recordable.begin(z)
        z += first.wait()  # behind begin: the second sum does not see it
        return z + second.wait()

    def anew():
        y = x * 2
        return 2 * y.sum(0, keepdim=True) + (y + 1) + 2

    tape = Tape()
    torch.testing.assert_close(tape.record(two_under_way), anew())
    for _ in range(3):
        x.normal_()
        torch.testing.assert_close(tape.replay(), anew())
    order = ["begin", "begin", "wait", "wait"]
    assert [call.split()[0] for call in reducer.calls] == 4 * order
    numbers = [int(call.split()[1]) for call in reducer.calls]
    assert numbers == [n + 2 * i for i in range(4) for n in (1, 2, 1, 2)]


def test_what_a_reducer_computes_is_not_on_the_tape():
    x = torch.ones(3, 1, 2, 2)
    tape = Tape()
    calls = []

    class Counting(LocalReducer):
        def begin(self, branches):
            calls.append(branches)
            return super().begin(branches)

    tape.record(lambda to_recordable: to_recordable(Counting()).begin(x).wait() + 1)
    x.fill_(2.0)
    assert torch.equal(tape.replay(), torch.full((1, 1, 2, 2), 7.0))
    assert len(calls) == 2


class Allocating(TorchDispatchMode):
    """Writes down the operators that return memory that none of their arguments has."""

    def __init__(self) -> None:
        super().__init__()
        self.operators: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        results = func(*args, **(kwargs or {}))
        given = {_place(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        if any(isinstance(y, Tensor) and _place(y) not in given for y in tree_leaves(results)):
            self.operators.append(str(func))
        return results


def _place(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()


@pytest.mark.parametrize("function", MODELS.values(), ids=MODELS)
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_replayed_decode_asks_for_no_memory_but_for_small_constants(function, position):
    fields = {
        "num_sublayers": 1, "hidden_size": 24, "num_hidden_layers": 3, "heads_per_sublayer": 4,
        "kv_heads_per_sublayer": 2, "vocab_size": 61, "max_position_embeddings": 48, "bias": True,
        "position": position,
    } | function  # fmt: skip
    config = ModelConfig(**fields)
    engine = Engine.random(config, ALONE, torch.float32)
    with engine.session([[1, 2, 3], [4]], 9) as session:
        session.prefill()
        place = session.decode(torch.tensor([1, 2])).data_ptr()
        with Allocating() as allocating:
            for _ in range(3):
                assert session.decode(torch.tensor([3, 4])).data_ptr() == place
    # Constants that depend on nothing, positions as angles, and what the caller makes itself.
    small = ("aten.arange", "aten.zeros", "aten.empty", "aten._to_copy")
    assert [name for name in allocating.operators if not name.startswith(small)] == []
