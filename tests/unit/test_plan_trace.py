"""The planner's programs are what the engine does: sums, operators, memory, layer by layer."""

import dataclasses
import subprocess
import sys
from collections import Counter

import pytest
import torch

import tiny
from krakenlm.bench.ranks import watched
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.model.shard import split
from krakenlm.plan import trace as tracing
from krakenlm.plan.layers import KEPT, shortened
from krakenlm.plan.program import Begin, Wait, Work
from krakenlm.plan.shapes import quick_result
from krakenlm.plan.trace import Pass, trace
from krakenlm.ranks.launch import Rank
from krakenlm.transport.links import Link

ALONE = Rank(0, 1, torch.device("cpu"), lambda message: None)
MODELS = tiny.FUNCTIONS | tiny.FAMILIES | tiny.ADAPTED
every_model = pytest.mark.parametrize("function", MODELS.values(), ids=MODELS)
every_function = pytest.mark.parametrize("function", tiny.FUNCTIONS.values(), ids=tiny.FUNCTIONS)


def config_of(function, **changes):
    config = tiny.model_config(**{"heads_per_sublayer": 4, **function, **changes})
    return config if config.traits.depends_on_degree else config.replace(num_sublayers=1)


def tensor_parallel_of(config) -> int:
    return 2 if config.traits.depends_on_degree else 1


class Counting:
    """Writes down what the engine sums."""

    def __init__(self, sent: list[tuple[str, int]], group: str, inner) -> None:
        self.sent, self.group, self.inner = sent, group, inner

    def begin(self, branches):
        self.sent.append((self.group, branches[0].nbytes))
        return self.inner.begin(branches)


def sent_by_engine(config, devices, tensor_parallel, which: Pass) -> list[tuple[str, int]]:
    options = EngineOptions(
        emulated_ranks=devices, link=Link(gbps=1e6), tensor_parallel=tensor_parallel,
        prefill_chunks=which.chunks, capture=False, pack=False,
    )  # fmt: skip
    engine = Engine.random(config, ALONE, torch.float32, options)
    sent: list[tuple[str, int]] = []
    streams = engine.connections.streams

    def counting(inner):
        return Counting(sent, "streams" if inner is streams else "parts", inner)

    engine = engine.with_connections(watched(engine.connections, counting))
    with engine.session([[1] * which.tokens] * which.batch, 2) as session:
        logits_BV = session.prefill()
        if which.decodes:
            sent.clear()
            session.decode(logits_BV.argmax(-1))
    return sent


@every_model
@pytest.mark.parametrize(
    "which", [Pass(1, 7), Pass(2, 9, chunks=2), Pass(2, 8, decodes=True)], ids=str
)
def test_traced_sums_are_those_that_the_engine_sends(function, which):
    config = config_of(function)
    for tensor_parallel in {1, tensor_parallel_of(config)}:
        devices = 2 * tensor_parallel
        shard = split(config, devices, tensor_parallel=tensor_parallel)[0]
        traced = [(sum.group, sum.nbytes) for sum in trace(shard, which, torch.float32).sums]
        assert traced == sent_by_engine(config, devices, tensor_parallel, which)
        assert traced


@every_function
@pytest.mark.parametrize("which", [Pass(1, 12, chunks=3), Pass(2, 8, decodes=True)], ids=str)
def test_a_few_layers_stand_for_all_of_them(function, which, monkeypatch):
    late = {"late_layers": "1-9"} if function.get("late_layers") else {}
    config = config_of(function, num_hidden_layers=12, **late)
    assert shortened(config).num_hidden_layers < 12
    tensor_parallel = tensor_parallel_of(config)
    shard = split(config, 2 * tensor_parallel, tensor_parallel=tensor_parallel)[0]
    few = trace(shard, which, torch.float32)
    monkeypatch.setattr(tracing, "_seen", {})  # nothing is repeated from another program either
    assert trace(shard, which, torch.float32, whole=True) == few


def test_models_of_few_layers_are_left_as_they_are():
    config = config_of({"wiring": "ladder"}, num_hidden_layers=KEPT)
    assert shortened(config) is config


def test_operators_are_those_of_the_rank_with_their_shapes():
    config = config_of({"wiring": "standard"}, hidden_size=16, num_hidden_layers=1, head_dim=8)
    shard = split(config, 2)[0]
    program = trace(shard, Pass(1, 5), torch.float32)
    operators = [op for item in program.items if isinstance(item, Work) for op in item.operators]
    gemms = [(op.part, op.shape) for op in operators if op.kind == "gemm"]
    # The only layer is the last: of the queries one is left, and of the vocabulary half.
    assert gemms == [
        ("gemm", (1, 5, 16, 3 * 16)),
        ("attention", (2, 1, 8, 5)),
        ("attention", (2, 1, 5, 8)),
        ("gemm", (1, 1, 16, 16)),
        ("gemm", (1, 1, 16, 32)),
        ("gemm", (1, 1, 32, 16)),
        ("lm_head", (1, 1, 16, tiny.VOCABULARY // 2)),
    ]
    flops = [op.flops for op in operators if op.kind == "gemm"]
    assert flops[0] == 2 * 5 * 16 * 48
    assert [op.shape for op in operators if op.kind == "norm"] == [(5, 16), (1, 16), (1, 16)]


def test_what_takes_its_own_time_is_told_from_what_moves_bytes():
    def kinds(**changes):
        config = config_of({"wiring": "standard", **changes}, num_hidden_layers=2)
        works = trace(split(config, 2)[0], Pass(1, 5), torch.float32).items
        operators = [op for item in works if isinstance(item, Work) for op in item.operators]
        return Counter(op.kind for op in operators), Counter(op.part for op in operators)

    gpt, parts = kinds()
    # Keys and values of both layers go into the cache; the last query attends by itself.
    assert (gpt["gelu"], gpt["copy"], gpt["softmax"], gpt["norm"]) == (2, 4, 1, 5)
    assert parts["message"] == 4 and "rms_norm" not in gpt
    llama, _ = kinds(norm="rmsnorm", activation="swiglu", bias=False)
    assert llama["rms_norm"] == 5 and not llama["norm"] and not llama["gelu"]


def test_fused_attention_is_one_operator_that_leaves_out_what_is_masked():
    config = config_of({"wiring": "standard"}, num_hidden_layers=2, head_dim=8)
    shard = split(config, 2)[0]
    program = trace(shard, Pass(3, 6), torch.float32)
    found = [
        op
        for item in program.items
        if isinstance(item, Work)
        for op in item.operators
        if op.kind == "attention"
    ]
    (fused,) = found
    assert fused.shape == (3, 2, 2, 6, 6, 8)
    assert fused.flops == 4 * 3 * 2 * 8 * (6 * 7 // 2)


def test_work_beside_a_sum_says_so():
    config = config_of({"wiring": "lagged"}, num_hidden_layers=2)
    program = trace(split(config, 2)[0], Pass(1, 6), torch.float32)
    under_way = 0
    for item in program.items:
        under_way += isinstance(item, Begin)
        under_way -= isinstance(item, Wait)
        if isinstance(item, Work):
            assert item.overlapped == (under_way > 0)
    named = {
        (item.name, item.layer): item.overlapped for item in program.items if isinstance(item, Work)
    }
    assert named["attention", 1] and not named["attention", 0]


def test_ranks_that_differ_in_nothing_share_a_program():
    config = config_of({"wiring": "standard"}, vocab_size=301)
    first, second, third, last = split(config, 4)
    which = Pass(1, 6)
    assert trace(first, which, torch.float32) is trace(second, which, torch.float32)
    assert trace(first, which, torch.float32) is trace(third, which, torch.float32)
    assert trace(last, which, torch.float32) is not trace(first, which, torch.float32)


def test_one_device_sends_nothing():
    for function in tiny.FUNCTIONS.values():
        program = trace(split(config_of(function), 1)[0], Pass(1, 6), torch.float32)
        assert all(isinstance(item, Work) for item in program.items)


META = torch.device("meta")


def meta(*shape, dtype=torch.float16):
    return torch.empty(shape, dtype=dtype, device=META)


MASK, EVERY_SECOND = meta(3, 4, dtype=torch.bool), meta(3, 4, 2)[..., 1]
NORMED = (meta(2, 3, 4), [4], meta(4), None, 1e-5)
CALLS = [
    ("add", torch.ops.aten.add.Tensor, (meta(2, 3, 4), meta(4))),
    ("add", torch.ops.aten.add.Tensor, (meta(2, dtype=torch.int64), 3)),
    ("mul", torch.ops.aten.mul.Tensor, (meta(2, 1, 3, 4), meta(1, 1, 3, 4))),
    ("mul", torch.ops.aten.mul.Tensor, (meta(1, 5, 1), meta(4, dtype=torch.float32))),
    ("add", torch.ops.aten.add.Tensor, (meta(3, 1), meta(1, 4))),
    ("sub", torch.ops.aten.sub.Tensor, (meta(3, 4), meta(3, 4))),
    ("mul", torch.ops.aten.mul.Tensor, (meta(2, 1, 4, 12)[..., :4].transpose(1, 2), 0.5)),
    ("gelu", torch.ops.aten.gelu.default, (meta(3, 4, 2)[..., 1],)),
    ("div", torch.ops.aten.div.Tensor, (meta(8), 64)),
    ("pow", torch.ops.aten.pow.Scalar, (10000.0, meta(8, dtype=torch.float32))),
    ("neg", torch.ops.aten.neg.default, (meta(8),)),
    ("gelu", torch.ops.aten.gelu.default, (meta(2, 8),)),
    ("silu", torch.ops.aten.silu.default, (meta(2, 8),)),
    ("gt", torch.ops.aten.gt.Tensor, (meta(9), meta(2, 1))),
    ("lt", torch.ops.aten.lt.Tensor, (meta(3, 2), meta(2))),
    ("masked_fill", torch.ops.aten.masked_fill.Scalar, (meta(3, 4), MASK, 0.0)),
    ("masked_fill", torch.ops.aten.masked_fill.Scalar, (EVERY_SECOND, MASK, 0.0)),
    ("clone", torch.ops.aten.clone.default, (meta(2, 5),)),
    ("empty_like", torch.ops.aten.empty_like.default, (meta(2, 5),)),
    ("mm", torch.ops.aten.mm.default, (meta(2, 5), meta(5, 7))),
    ("mm", torch.ops.aten.mm.default, (meta(2, 5), meta(7, 5).t())),
    ("bmm", torch.ops.aten.bmm.default, (meta(3, 2, 5), meta(3, 7, 5).transpose(1, 2))),
    ("addmm", torch.ops.aten.addmm.default, (meta(7), meta(2, 5), meta(5, 7))),
    ("baddbmm", torch.ops.aten.baddbmm.default, (meta(3, 1, 7), meta(3, 2, 5), meta(3, 5, 7))),
    ("embedding", torch.ops.aten.embedding.default, (meta(9, 4), meta(2, 3, dtype=torch.int64))),
    ("native_layer_norm", torch.ops.aten.native_layer_norm.default, NORMED),
    ("_softmax", torch.ops.aten._softmax.default, (meta(2, 3, 4), -1, False)),
    ("cat", torch.ops.aten.cat.default, ([meta(2, 3), meta(2, 1)], -1)),
    ("cat", torch.ops.aten.cat.default, ([meta(2, 1), meta(2, 1, dtype=torch.float64)], 1)),
    ("stack", torch.ops.aten.stack.default, ([meta(2, 3), meta(2, 3)], 1)),
    ("amax", torch.ops.aten.amax.default, (meta(4, 3), [0])),
    ("amin", torch.ops.aten.amin.default, (meta(4, 3), [-1], True)),
    ("max", torch.ops.aten.max.dim, (meta(4, 3), -1, True)),
    ("arange", torch.ops.aten.arange.start, (3, 9)),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "operator", "arguments"), CALLS, ids=lambda value: str(value)[:18]
)
def test_quick_answers_are_pytorchs(name, operator, arguments):
    keywords = {"device": META, "dtype": torch.int64} if name == "arange" else {}
    quick = quick_result(name, arguments, keywords)
    assert quick is not None
    said = operator(*arguments, **keywords)
    pairs = [(quick, said)] if isinstance(quick, torch.Tensor) else zip(quick, said, strict=True)
    for mine, theirs in pairs:
        assert (mine.shape, mine.stride()) == (theirs.shape, theirs.stride())
        # PyTorch keeps a norm's statistics in float32 on devices, and on meta as a CPU would.
        if name != "native_layer_norm" or mine is quick[0]:
            assert mine.dtype == theirs.dtype


def test_what_is_not_plain_is_left_to_pytorch():
    turned = meta(3, 4).t()
    assert quick_result("add", (turned, meta(4, 3)), {}) is None
    assert quick_result("gelu", (turned,), {}) is None
    assert quick_result("add", (torch.ones(2), torch.ones(2)), {}) is None  # on the host
    assert quick_result("sort", (meta(3),), {}) is None


def test_tracing_leaves_the_compiler_alone():
    # It takes a second to import, a fifth of what the paper's whole grid may take.
    program = """
import sys, torch
from krakenlm.config import model_config
from krakenlm.model.shard import split
from krakenlm.plan.trace import Pass, trace
gpt, llama = model_config("124M"), model_config("124M", position="rope", norm="rmsnorm")
for config in (gpt, llama.replace(activation="swiglu", qk_norm=True)):
    for which in (Pass(2, 64), Pass(2, 64, decodes=True)):
        trace(split(config, 2)[0], which, torch.float16)
sys.exit(any(name in sys.modules for name in ("sympy", "torch._dynamo")))
"""
    assert subprocess.run([sys.executable, "-c", program], timeout=120).returncode == 0


def test_a_shard_of_another_rank_is_another_program_where_it_holds_more():
    config = config_of({"wiring": "kraken"}, num_sublayers=3)
    light, heavy = split(config, 2)
    assert (light.count, heavy.count) == (1, 2)
    which = Pass(1, 6)
    assert trace(light, which, torch.float32) != trace(heavy, which, torch.float32)
    again = dataclasses.replace(heavy)
    assert trace(again, which, torch.float32) is trace(heavy, which, torch.float32)
