"""What a rank holds in memory while it loads and runs a model of 1.5 billion parameters."""

import json
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from krakenlm.config import count_parameters, model_config
from krakenlm.engine.engine import Engine
from krakenlm.model.decoder import Decoder
from krakenlm.model.packed import can_pack
from krakenlm.model.shard import split
from krakenlm.ranks.launch import Rank, launch

pytestmark = [pytest.mark.slow, pytest.mark.dist]

CONFIG = model_config("1.5B")
DEVICES = 2
PROMPT_TOKENS = 128
NEW_TOKENS = 8
BYTES = 2  # of a bfloat16 number


def write_checkpoint(directory: Path) -> None:
    """Random weights under the names that ``KrakenForCausalLM.save_pretrained`` gives them."""
    with torch.device("meta"):
        shapes = Decoder(CONFIG).state_dict()
    noise = torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)).to(torch.bfloat16)

    def drawn(shape: torch.Size) -> Tensor:
        repeats = -(-shape.numel() // noise.numel())
        return (0.02 * noise).repeat(repeats)[: shape.numel()].view(shape)

    state = {f"model.{name}": drawn(meta.shape) for name, meta in shapes.items()}
    save_file(state, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(json.dumps(CONFIG.to_hf_dict()))


def anonymous_bytes() -> int:
    """Memory of this process that no file backs; what it maps of a checkpoint does not count."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon:"):
            return 1024 * int(line.split()[1])
    raise AssertionError("this kernel does not tell RssAnon")


class Peak:
    """The most memory in use within a ``with`` block, beyond what was in use before."""

    def __enter__(self) -> "Peak":
        self._before = self._highest = anonymous_bytes()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._over.is_set():
            self._highest = max(self._highest, anonymous_bytes())
            time.sleep(0.005)

    @property
    def nbytes(self) -> int:
        return self._highest - self._before


def held_bytes(rank: Rank) -> int:
    """Weights of one rank: its part of the decoder, and its own copy of its rows of the head."""
    shard = split(CONFIG, rank.size)[rank.index]
    decoder = count_parameters(shard.local_config)
    head = len(shard.head_rows) * CONFIG.hidden_size
    return BYTES * (decoder + head)


def answer(rank: Rank, directory: Path) -> None:
    torch.distributed.barrier()
    prompt = [i % CONFIG.vocab_size for i in range(PROMPT_TOKENS)]
    with Peak() as all_along:
        with Peak() as loading:
            engine = Engine.load(directory, rank, torch.bfloat16)
        with engine.session([prompt], NEW_TOKENS) as session:
            cache = session.cache.nbytes
        assert len(list(engine.generate([prompt], max_new_tokens=NEW_TOKENS))) == NEW_TOKENS
    rank.emit(
        {
            "weights": held_bytes(rank),
            "cache": cache,
            "peak while loading": loading.nbytes,
            "peak all along": all_along.nbytes,
        }
    )


@pytest.mark.skipif(
    not can_pack(torch.empty(1, dtype=torch.bfloat16)),
    reason="PyTorch has no packed bfloat16 products on this machine",
)
@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs Linux")
def test_a_rank_needs_a_fifth_more_than_its_weights_and_cache_at_most(tmp_path):
    write_checkpoint(tmp_path)
    whole = BYTES * count_parameters(CONFIG)
    heard: list[dict[str, int]] = []
    launch(answer, [tmp_path], devices=DEVICES, on_message=heard.append, device_type="cpu")
    assert len(heard) == DEVICES
    for said in heard:
        allowed = 1.2 * (said["weights"] + said["cache"])
        assert said["peak while loading"] <= said["peak all along"] <= allowed, said
        assert said["peak all along"] < 0.65 * whole, said
