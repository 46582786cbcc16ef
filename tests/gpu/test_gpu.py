"""The same code on a CUDA device; run with ``pytest -m gpu`` where there is one."""

import pytest
import torch

from krakenlm.bench.latency import Setup, measure
from krakenlm.bench.models import contenders
from krakenlm.config import WIRINGS
from krakenlm.engine.engine import Engine
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.ranks.launch import Rank, launch
from krakenlm.transport.collective import WithoutCommunication
from krakenlm.transport.links import EmulatedLink, Link

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PROMPT = torch.randint(61, (2, 9), generator=torch.Generator().manual_seed(0))


def saved(directory, wiring: str) -> KrakenForCausalLM:
    torch.manual_seed(0)
    model = KrakenForCausalLM(
        KrakenConfig(
            wiring=wiring, num_sublayers=2, hidden_size=24, num_hidden_layers=3,
            heads_per_sublayer=4, vocab_size=61, max_position_embeddings=48, bias=True,
        )
    ).eval()  # fmt: skip
    model.save_pretrained(directory)
    return model


def answer(rank: Rank, directory) -> None:
    engine = Engine.load(directory, rank, torch.float32)
    logits = engine.logits(PROMPT.to(rank.device))
    rank.emit((rank.device.type, logits.cpu().tolist()))


@pytest.mark.parametrize("wiring", WIRINGS)
def test_logits_equal_the_cpus(wiring, tmp_path):
    model = saved(tmp_path, wiring)
    heard = []
    launch(answer, [tmp_path], devices=1, on_message=heard.append, device_type="cuda")
    ((device, logits),) = heard
    assert device == "cuda"
    with torch.no_grad():
        wanted = model(PROMPT).logits
    torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-4, rtol=0)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_bfloat16_training_step_is_finite(wiring, tmp_path):
    model = saved(tmp_path, wiring).cuda().train()
    with torch.autocast("cuda", dtype=torch.bfloat16):
        loss = model(PROMPT.cuda(), labels=PROMPT.cuda()).loss
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
@pytest.mark.parametrize("wiring", WIRINGS)
def test_two_gpus_over_nccl_equal_one_cpu(wiring, tmp_path):
    model = saved(tmp_path, wiring)
    heard = []
    launch(answer, [tmp_path], devices=2, on_message=heard.append, device_type="cuda")
    with torch.no_grad():
        wanted = model(PROMPT).logits
    assert [kind for kind, _ in heard] == ["cuda", "cuda"]
    for _, logits in heard:
        torch.testing.assert_close(torch.tensor(logits), wanted, atol=1e-4, rtol=0)


def test_a_modelled_link_holds_sums_back_on_the_device():
    link = EmulatedLink(WithoutCommunication(2), Link(gbps=1, latency_us=500), ranks=2)
    x = torch.randn(1, 1, 500, 1000, device="cuda", dtype=torch.bfloat16)  # a megabyte: 8 ms
    link.begin(x).wait()  # the first one measures the clock
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    start.record()
    first, second = link.begin(x), link.begin(x)
    total = second.wait()
    first.wait()
    end.record()
    end.synchronize()
    assert start.elapsed_time(end) == pytest.approx(16.5, rel=0.2)
    assert torch.equal(total, x)


@pytest.mark.parametrize("wiring", WIRINGS)
def test_one_rank_with_emulated_peers_waits_for_their_sums(wiring):
    (model,) = contenders("124M", [wiring], ["keep-width"], sublayers=2)
    setup = Setup(
        devices=2, input_len=512, output_len=4, iterations=3, warm_up=2, device="cuda",
        link=Link(gbps=10, latency_us=20), emulate_peers=True,
    )  # fmt: skip
    measured = measure([model], setup, title="emulated peers")
    assert measured is not None
    (result,) = measured.report.results
    assert result.ttft_ms.median > result.no_comm_ttft_ms.median
    assert result.communication_ms.median == pytest.approx(
        result.allreduces * 1000 * (result.message_bytes * 8e-10 + 20e-6), rel=0.3
    )
