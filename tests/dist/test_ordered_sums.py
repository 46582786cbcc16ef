"""Sums that vLLM's compiled graphs begin and await: the numbers, the order, the overlap."""

import time

import pytest
import torch
from torch import distributed as dist

import tiny
from generated_code import calls, overlapped
from krakenlm.config import ModelConfig, allreduces
from krakenlm.model.attention import SdpaCore
from krakenlm.model.decoder import Decoder
from krakenlm.model.reduce import LocalReducer
from krakenlm.ranks.launch import Rank, launch
from krakenlm.serving.overlap import (
    BlockingCarrier,
    OrderedReducer,
    asynchronous_carriers,
    enlist,
)
from krakenlm.transport.collective import Group
from krakenlm.transport.connect import Transport

pytestmark = pytest.mark.dist

LAYERS = 3
LATE = 0.2
SHAPE = {
    "hidden_size": 16, "num_hidden_layers": LAYERS, "heads_per_sublayer": 2, "vocab_size": 31,
    "max_position_embeddings": 16,
}  # fmt: skip
CONFIGS = {
    name: ModelConfig(num_sublayers=2, **SHAPE, **fields)  # type: ignore[arg-type]
    for name, fields in tiny.FUNCTIONS.items()
}


def decoder(config: ModelConfig) -> Decoder:
    torch.manual_seed(0)
    made = Decoder(config).eval()
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


@torch.no_grad()
def hidden_states(model: Decoder, reducer, core=None, **options) -> torch.Tensor:
    ids_BT = torch.arange(8).unsqueeze(0)
    return model(model.embed_tokens(ids_BT), ids_BT, core or SdpaCore(), reducer, **options)


class Doubling:
    """Carries sums over two ranks that hold the same: what begin is handed, twice."""

    def __init__(self) -> None:
        self._total = None

    def begin(self, branches, total) -> None:
        torch.sum(branches, dim=0, keepdim=True, out=total)
        self._total = total

    def wait(self) -> None:
        assert self._total is not None
        self._total.mul_(2)
        self._total = None


class Logged(Doubling):
    """The same, and writes down in what order it is called, under the operators' names."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self._log = log

    def begin(self, branches, total) -> None:
        self._log.append("begin_sum")
        super().begin(branches, total)

    def wait(self) -> None:
        self._log.append("await_sum")
        super().wait()


class LoggedCore(SdpaCore):
    """Attention that writes down when it is called."""

    def __init__(self, log: list[str]) -> None:
        super().__init__()
        self._log = log

    def __call__(self, *arguments):
        self._log.append("attention")
        return super().__call__(*arguments)


class Twice(LocalReducer):
    """The same without operators."""

    def begin(self, branches):
        ready = super().begin(branches)
        return ready._replace(total_1BTD=ready.total_1BTD * 2)


@pytest.mark.parametrize("function", CONFIGS)
def test_sums_by_operators_are_those_of_the_wiring(function):
    config = CONFIGS[function]
    model = decoder(config)
    slots = enlist([Doubling() for _ in range(allreduces(config))])
    for _ in range(2):  # a carrier carries its sum in every pass
        reducer = OrderedReducer(slots)
        found = hidden_states(model, reducer, wrap=reducer.wrap)
        torch.testing.assert_close(found, hidden_states(model, Twice()))


def test_a_blocking_carrier_takes_sums_in_place_and_others():
    for all_reduce in (lambda x: x.mul_(2), lambda x: x * 2):
        branches, total = torch.ones(2, 3), torch.empty(1, 3)
        carrier = BlockingCarrier(all_reduce)
        carrier.begin(branches, total)
        carrier.wait()
        assert total.tolist() == [[4, 4, 4]]
        assert branches.tolist() == [[1, 1, 1]] * 2


def late_partner(rank: Rank, transport: Transport) -> None:
    """The second rank joins the sum late; the first computes meanwhile."""
    carriers, _ = asynchronous_carriers(Group(rank.index, rank.size), 1, rank.device, transport)
    slots = enlist(carriers)
    reducer = OrderedReducer(slots)
    branches = torch.full((2, 1, 4, 8), float(rank.index + 1))
    dist.barrier()
    if rank.index == 1:
        time.sleep(LATE)
    start = time.perf_counter()
    begun = reducer.begin(branches)
    begin_s = time.perf_counter() - start
    time.sleep(2 * LATE)  # stands for attention
    reducer.computed_KBTD = torch.zeros(1)
    start = time.perf_counter()
    total = begun.wait()
    wait_s = time.perf_counter() - start
    rank.emit((rank.index, begin_s, wait_s, total.unique().tolist(), branches.unique().tolist()))


@pytest.mark.alone
@pytest.mark.parametrize("transport", ["process-group", "shared-memory", "sockets"])
def test_a_late_sum_finishes_behind_what_is_computed_meanwhile(transport):
    heard = []
    launch(
        late_partner, [transport], devices=2, on_message=heard.append, device_type="cpu", threads=1
    )
    assert sorted(index for index, *_ in heard) == [0, 1]
    for index, begin_s, wait_s, total, branches in heard:
        assert begin_s < LATE / 2
        assert wait_s < LATE / 2
        assert total == [6]
        assert branches == [index + 1]  # the stream itself is left as it is


@pytest.mark.slow
@pytest.mark.parametrize("function", CONFIGS)
def test_generated_code_keeps_the_order_of_the_wiring(function):
    import torch._inductor.config as inductor
    from torch._inductor.utils import run_and_get_code

    config = CONFIGS[function]
    model = decoder(config)
    slots = enlist([Doubling() for _ in range(allreduces(config))])

    @torch.compile(fullgraph=True)
    def compiled() -> torch.Tensor:
        reducer = OrderedReducer(slots)
        return hidden_states(model, reducer, wrap=reducer.wrap)

    with inductor.patch(enable_auto_functionalized_v2=False):  # as vLLM sets it
        found, (code,) = run_and_get_code(compiled)
    torch.testing.assert_close(found, hidden_states(model, Twice()), atol=1e-5, rtol=1e-5)
    log: list[str] = []
    reducer = OrderedReducer(enlist([Logged(log) for _ in slots]))
    hidden_states(model, reducer, LoggedCore(log), wrap=reducer.wrap)
    assert calls(code, "aten._scaled_dot_product_flash_attention_for_cpu") == log
    held_back = config.traits.hidden(LAYERS) if config.message_parts > 1 else 0
    assert code.count("torch.ops.krakenlm.hold_back.default(") == held_back
    if config.traits.hidden_allreduces == (1, -1) and not config.late_layers:
        assert log == overlapped(LAYERS)
