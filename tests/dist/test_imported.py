"""Models of other families answer on 2 and 3 gloo ranks as Transformers' own classes do on one."""

from pathlib import Path
from typing import Any

import pytest
import torch

import naive
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.sampling import Sampling
from krakenlm.ranks.launch import Rank, launch

pytestmark = pytest.mark.dist

# All have three key and value heads, which two ranks share out unevenly.
NAMES = ["llama, tied, llama3", "llama, linear, biases", "qwen2, tied", "qwen3", "gpt_neox"]
PROMPTS = [[5, 250, 31, 7, 7, 99, 300, 12, 1], [42, 17]]
NEW_TOKENS = 12


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, tuple[list[Path], Any]]:
    """Folders of one branch and of three, and Transformers' model, of each."""
    # Not above: ranks import this file too, and Transformers takes each of them seconds.
    import foreign
    from krakenlm.integrations.pretrained.importing import import_model
    from krakenlm.integrations.pretrained.sources import FolderSource

    made = {}
    for name in NAMES:
        model, root = foreign.make(name), tmp_path_factory.mktemp("imported")
        model.save_pretrained(root / "theirs")
        for n in (1, 3):
            import_model(FolderSource(root / "theirs"), root / str(n), num_sublayers=n)
        made[name] = ([root / "1", root / "3"], model)
    return made


def answer(rank: Rank, directories: list[tuple[str, Path]]) -> None:
    variants = [EngineOptions(), EngineOptions(prefill_chunks=2)]
    if rank.size == 2:
        variants.append(EngineOptions(placement=(2, 1)))
    for name, directory in directories:
        for variant, options in enumerate(variants):
            engine = Engine.load(directory, rank, torch.float32, options)
            steps = engine.generate(PROMPTS, max_new_tokens=NEW_TOKENS, sampling=Sampling())
            rank.emit(((name, directory.name, variant, rank.index), list(zip(*steps, strict=True))))


@pytest.mark.parametrize("devices", [2, 3])
def test_greedy_tokens_are_those_of_transformers(models, devices):
    heard: dict[Any, Any] = {}
    directories = [(name, folder) for name, (folders, _) in models.items() for folder in folders]
    launch(
        answer,
        [directories],
        devices=devices,
        on_message=lambda message: heard.update([message]),
        device_type="cpu",
    )
    assert len(heard) == len(directories) * devices * (3 if devices == 2 else 2)
    for name, (_, model) in models.items():
        likeliest = [naive.greedy(model, prompt, NEW_TOKENS) for prompt in PROMPTS]
        found = {key: [list(row) for row in rows] for key, rows in heard.items() if key[0] == name}
        assert found == dict.fromkeys(found, likeliest)
