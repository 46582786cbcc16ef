"""Who is reduced, when the sum is begun and when it is awaited, for each wiring."""

import pytest
import torch
from torch import Tensor

import tiny
from krakenlm.config import WIRINGS, allreduce_bytes_per_token
from krakenlm.model.attention import SdpaCore
from krakenlm.model.channels import Channels
from krakenlm.model.decoder import Decoder, initialise_module
from krakenlm.model.feed_forward import FeedForward
from krakenlm.model.reduce import LocalReducer
from krakenlm.model.wiring import WIRING_FUNCTIONS, run

LAYERS = 3


class Log:
    """Blocks, a Reducer and a join that write down in which order they are called."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.begun = 0

    def blocks(self):
        return [LoggedBlock(self, index + 1) for index in range(LAYERS)]

    def begin(self, branches: Tensor):
        self.begun += 1
        self.calls.append(f"begin {self.begun}")
        return LoggedPending(self, self.begun, branches)

    def join(self, x: Tensor) -> Tensor:
        self.calls.append("join")
        return x


class LoggedPending:
    def __init__(self, log: Log, number: int, branches: Tensor) -> None:
        self.log, self.number, self.branches = log, number, branches

    def wait(self) -> Tensor:
        self.log.calls.append(f"wait {self.number}")
        return self.branches.sum(0, keepdim=True)


class LoggedBlock:
    message = Channels(0, 3, 3)

    def __init__(self, log: Log, layer: int) -> None:
        self.log, self.layer = log, layer

    def keep(self, x: Tensor) -> Tensor:
        return x

    def attend(self, x: Tensor) -> Tensor:
        self.log.calls.append(f"attend {self.layer}")
        return x

    def feed(self, x: Tensor) -> Tensor:
        self.log.calls.append(f"feed {self.layer}")
        return x

    def attend_and_feed(self, x: Tensor) -> Tensor:
        self.log.calls.append(f"both {self.layer}")
        return x


SCHEDULES = {
    "kraken": [
        "attend 1", "feed 1",
        "begin 1", "attend 2", "wait 1", "feed 2",
        "begin 2", "attend 3", "wait 2", "feed 3",
        "join", "begin 3", "wait 3",
    ],
    "standard": [
        "attend 1", "begin 1", "wait 1", "feed 1", "begin 2", "wait 2",
        "attend 2", "begin 3", "wait 3", "feed 2", "begin 4", "wait 4",
        "attend 3", "begin 5", "wait 5", "feed 3", "begin 6", "wait 6",
        "join",
    ],
    "parallel": [
        "both 1", "begin 1", "wait 1",
        "both 2", "begin 2", "wait 2",
        "both 3", "begin 3", "wait 3",
        "join",
    ],
    "ladder": [
        "attend 1", "begin 1",
        "feed 1", "begin 2", "wait 1",
        "attend 2", "begin 3", "wait 2",
        "feed 2", "begin 4", "wait 3",
        "attend 3", "begin 5", "wait 4",
        "feed 3", "begin 6", "wait 5",
        "wait 6", "join",
    ],
    "shared": (late := [
        "attend 1", "feed 1",
        "begin 1", "attend 2", "wait 1", "feed 2",
        "begin 2", "attend 3", "wait 2", "feed 3",
        "begin 3", "wait 3", "join",
    ]),
    "kraken-shared": late,
    "lagged": late,
    "lagged-layer": [
        "both 1",
        "begin 1", "both 2", "wait 1",
        "begin 2", "both 3", "wait 2",
        "begin 3", "wait 3", "join",
    ],
}  # fmt: skip


@pytest.mark.parametrize("wiring", WIRINGS)
def test_schedule(wiring):
    log = Log()
    run(WIRING_FUNCTIONS[wiring](log.blocks(), torch.ones(1, 1, 2, 3), log, log.join))
    assert log.calls == SCHEDULES[wiring]


@pytest.mark.parametrize("wiring", WIRINGS)
def test_others_may_compute_before_each_wait_and_nowhere_else(wiring):
    log = Log()
    for result in WIRING_FUNCTIONS[wiring](log.blocks(), torch.ones(1, 1, 2, 3), log, log.join):
        if result is None:
            log.calls.append("yield")
    before_waits = [log.calls[i - 1] for i, call in enumerate(log.calls) if "wait" in call]
    assert before_waits == ["yield"] * log.begun
    assert log.calls.count("yield") == log.begun


@pytest.mark.parametrize("wiring", WIRINGS)
def test_number_of_allreduces_is_what_the_traits_say(wiring):
    log = Log()
    run(WIRING_FUNCTIONS[wiring](log.blocks(), torch.ones(1, 1, 2, 3), log, log.join))
    assert log.begun == WIRINGS[wiring].allreduces(LAYERS)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_number_of_hidden_allreduces_is_what_the_traits_say(wiring):
    log = Log()
    run(WIRING_FUNCTIONS[wiring](log.blocks(), torch.ones(1, 1, 2, 3), log, log.join))
    hidden = 0
    for number in range(1, log.begun + 1):
        begin, wait = log.calls.index(f"begin {number}"), log.calls.index(f"wait {number}")
        between = log.calls[begin:wait]
        hidden += any(call.split()[0] in ("attend", "feed", "both") for call in between)
    assert hidden == WIRINGS[wiring].hidden(LAYERS)


def test_a_sum_of_all_channels_cuts_and_copies_nothing():
    message = Channels.of_layer(tiny.model_config(wiring="shared"), 1)
    x, y = torch.randn(2, 1, 3, 16), torch.randn(2, 1, 3, 16)
    assert message.of(x) is x
    assert message.renew(x, y) is y
    assert torch.equal(message.add(x[:1], y[:1]), x[:1] + y[:1])


@pytest.mark.parametrize("index", range(5))
def test_groups_of_channels_take_turns(index):
    config = tiny.model_config(wiring="shared", hidden_size=12, message_parts=3)
    message = Channels.of_layer(config, index)
    group = range(4 * (index % 3), 4 * (index % 3) + 4)
    x, y = torch.randn(2, 1, 3, 12), torch.randn(2, 1, 3, 12)
    before = x.clone(), y.clone()
    assert torch.equal(message.of(x), x[..., group])
    assert message.of(x).data_ptr() == x[..., group.start :].data_ptr()  # a view
    added = message.add(x[:1], torch.ones(1, 1, 3, 4))
    renewed = message.renew(x, y)
    for channel in range(12):
        carried = channel in group
        assert torch.equal(added[..., channel], x[:1, ..., channel] + float(carried))
        rest = y if carried else x + y
        assert torch.equal(renewed[..., channel], rest[..., channel])
    assert torch.equal(x, before[0]) and torch.equal(y, before[1])


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_every_message_of_a_pass_is_as_wide_as_its_parts_say(parts):
    config = tiny.model_config(
        wiring="shared", hidden_size=12, num_hidden_layers=5, message_parts=parts
    )
    decoder = Decoder(config)
    decoder.initialise()
    widths: list[int] = []

    class Measuring(LocalReducer):
        def begin(self, branches_KBTD: Tensor):
            widths.append(branches_KBTD.shape[-1])
            return super().begin(branches_KBTD)

    ids = torch.arange(4)[None]
    decoder(decoder.embed_tokens(ids), ids, SdpaCore(), Measuring())
    assert widths == [12 // parts] * 4 + [12]
    assert 2 * sum(widths) == allreduce_bytes_per_token(config)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_branches_that_add_to_one_stream_are_dropped_together(wiring):
    config = tiny.model_config(wiring=wiring, num_sublayers=3, dropout=0.5)
    network = FeedForward(config, output_std=1.0).train()
    network.apply(lambda module: initialise_module(module, 1.0))
    dropped_KBTD = network(torch.randn(1, 2, 9, 16)) == 0
    together = torch.equal(dropped_KBTD, dropped_KBTD[:1].expand_as(dropped_KBTD))
    assert together == (wiring != "kraken")
    assert 0.3 < dropped_KBTD.float().mean() < 0.7


def test_local_reducer_sums_branches_and_leaves_them_as_they_are():
    branches = torch.randn(3, 2, 4, 5)
    kept = branches.clone()
    torch.testing.assert_close(LocalReducer().begin(branches).wait(), kept.sum(0, keepdim=True))
    assert torch.equal(branches, kept)
