"""Prompts whose pass is captured and replayed, against the same operator by operator."""

import gc
import weakref
from types import SimpleNamespace

import pytest
import torch

import tiny
from krakenlm.bench.runner import Runner
from krakenlm.engine import session as session_module
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.ranks.launch import Rank
from krakenlm.transport.links import Link

ALONE = Rank(0, 1, torch.device("cpu"), lambda message: None)


def engine_of(seed: int = 0, **options) -> tuple[Engine, Engine]:
    """One that captures, and the same weights operator by operator."""
    wiring = options.pop("wiring", "kraken")
    config = tiny.model_config(wiring=wiring, heads_per_sublayer=2, num_hidden_layers=3)
    torch.manual_seed(seed)
    options = {"emulated_ranks": 2, "link": Link(gbps=1e6), **options}
    captured = Engine.random(config, ALONE, torch.float32, EngineOptions(**options))
    plain = captured.with_connections(captured.connections)
    captured.options = EngineOptions(**options, graph_prefill=True)
    return captured, plain


def prompts(*lengths: int, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(tiny.VOCABULARY, (n,), generator=generator).tolist() for n in lengths]


def logits(engine: Engine, texts: list[list[int]], decode: bool = True) -> list[torch.Tensor]:
    with engine.session(texts, 3) as session:
        found = [session.prefill().clone()]
        if decode:
            found.append(session.decode(found[0].argmax(1)).clone())
    return found


@pytest.mark.parametrize("chunks", [1, 2])
@pytest.mark.parametrize("wiring", ["standard", "kraken", "shared", "lagged-layer"])
def test_replayed_prompts_give_the_same_logits(wiring, chunks, monkeypatch):
    captures: list[int] = []
    real = session_module.capture

    def counted(run, device):
        captures.append(1)
        return real(run, device)

    monkeypatch.setattr(session_module, "capture", counted)
    captured, plain = engine_of(wiring=wiring, prefill_chunks=chunks)
    for seed, lengths in ((1, (9, 5)), (2, (9, 5)), (3, (9, 5)), (4, (6, 9)), (5, (9, 5))):
        texts = prompts(*lengths, seed=seed)
        for mine, wanted in zip(logits(captured, texts), logits(plain, texts), strict=True):
            torch.testing.assert_close(mine, wanted, atol=1e-5, rtol=1e-5)
    prompt_passes = len(captures) - 2  # each engine captures its decode pass once
    assert prompt_passes == 3  # other lengths, and the first ones again


def test_a_wrapped_pass_is_not_captured():
    captured, _ = engine_of()
    seen = []
    with captured.session(prompts(4), 1) as session:
        session.prefill(lambda index, block: seen.append(index) or block)
        session.prefill(lambda index, block: seen.append(index) or block)
    assert seen == [0, 1, 2] * 2


def test_what_a_graph_reads_outlives_its_capture(monkeypatch):
    """A CUDA graph knows addresses alone: it keeps no tensor that its pass was given."""
    read: list[weakref.ref] = []
    real = session_module.PrefillCore

    def noted(cache, start, kept_B):
        read.append(weakref.ref(kept_B))
        return real(cache, start, kept_B)

    monkeypatch.setattr(session_module, "PrefillCore", noted)
    monkeypatch.setattr(
        session_module, "capture", lambda run, device: SimpleNamespace(result=run(lambda r: r))
    )
    captured, _ = engine_of(prefill_chunks=2)
    with captured.session(prompts(6), 1) as session:
        session.prefill()
        gc.collect()
        assert len(read) == 2 and all(tensor() is not None for tensor in read)


def test_sums_are_counted_once_however_often_a_capture_runs(monkeypatch):
    class Thrice:
        """As a CUDA graph is made: the pass runs before it is captured."""

        def __init__(self, run) -> None:
            self.run = run
            self.result = [run(lambda reducer: reducer) for _ in range(3)][-1]

        def replay(self):
            return self.run(lambda reducer: reducer)

    monkeypatch.setattr(session_module, "capture", lambda run, device: Thrice(run))
    captured, plain = engine_of()
    text = prompts(7)
    mine, wanted = (Runner(0, engine, text, 1) for engine in (captured, plain))
    assert mine.messages == wanted.messages and len(mine.messages) == 3
    assert mine.engine.options.graph_prefill
