"""Which transport carries messages, without any ranks to exchange them."""

import pytest
import torch

from krakenlm.engine.options import EngineOptions
from krakenlm.errors import KrakenError
from krakenlm.model.reduce import Ready
from krakenlm.model.shard import split
from krakenlm.ranks.launch import Rank
from krakenlm.transport import symmetric_memory
from krakenlm.transport.connect import TRANSPORTS, _BySize, connect
from tiny import model_config


def refusal(device: str, transport) -> str:
    rank = Rank(0, 2, torch.device(device), print)
    shard = split(model_config(num_sublayers=2), 2)[0]
    with pytest.raises(KrakenError) as refused:
        connect(rank, shard, transport)
    return str(refused.value)


def test_symmetric_memory_is_refused_on_cpus():
    assert refusal("cpu", "symmetric-memory") == (
        "--transport symmetric-memory: is for GPUs: leave it out"
    )


@pytest.mark.parametrize("transport", ["shared-memory", "sockets"])
def test_transports_between_cpus_are_refused_on_gpus(transport):
    wanted = f"--transport {transport}: GPUs exchange through NCCL: leave it out"
    assert refusal("cuda", transport) == wanted


def test_an_unknown_transport_is_refused_with_those_there_are():
    with pytest.raises(KrakenError) as refused:
        EngineOptions(transport="pigeon")
    assert str(refused.value).endswith(", ".join(TRANSPORTS))


@pytest.mark.skipif(torch.version.cuda is not None, reason="this PyTorch is built for GPUs")
def test_a_pytorch_without_symmetric_memory_is_named():
    with pytest.raises(KrakenError, match="symmetric-memory: this PyTorch has none for GPUs"):
        symmetric_memory._allocate(torch.device("cuda", 0), [0, 1])


class Noting:
    """A collective that says what it is given."""

    def __init__(self, name: str, said: list[str]) -> None:
        self._name, self._said = name, said

    def begin(self, branches):
        self._said.append(f"{self._name} sums {branches.shape[-1]}")
        return Ready(branches.sum(0, keepdim=True))

    def gather(self, x):
        self._said.append(f"{self._name} gathers")
        return x.unsqueeze(0)

    def close(self) -> None:
        self._said.append(f"{self._name} closes")


def test_messages_up_to_the_limit_go_one_way_and_larger_ones_another():
    said: list[str] = []
    both = _BySize(Noting("small", said), Noting("large", said), limit=8)
    for dtype in (torch.float32, torch.bfloat16):
        for size in (1, 2, 3, 4, 5):
            branches = torch.ones(3, 1, 1, size, dtype=dtype)  # what counts is their sum's size
            assert torch.equal(both.begin(branches).wait(), 3 * branches[:1])
    both.gather(torch.ones(100))
    both.close()
    assert said == [
        *("small sums 1", "small sums 2", "large sums 3", "large sums 4", "large sums 5"),
        *("small sums 1", "small sums 2", "small sums 3", "small sums 4", "large sums 5"),
        *("small gathers", "small closes", "large closes"),
    ]
