"""Files from strangers: whatever is in them, what is not read ends in an error of ours.

``CASES`` says how many damaged files each kind of file is tried with; `make test-reliability` says
800, which is more than 10,000 together.
"""

import json
import os
import resource
import shutil
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import foreign
import krakenlm
import tiny
from authors_checkpoint import make_checkpoint
from krakenlm.bench.results import LatencyReport
from krakenlm.data.folder_tokenizer import read_tokenizer
from krakenlm.data.tokens import open_split
from krakenlm.errors import KrakenError
from krakenlm.eval.report import EvalReport
from krakenlm.integrations.authors_release import convert
from krakenlm.integrations.pretrained.gguf_file import GgufSource
from krakenlm.integrations.pretrained.importing import import_model
from krakenlm.integrations.pretrained.sources import FolderSource
from krakenlm.model.checkpoint import read_config, read_shard
from krakenlm.model.shard import split
from krakenlm.plan.profile_files import read_profiles
from krakenlm.train.recipe import read_recipe

pytest.importorskip("gguf", reason="GGUF files need the package gguf: krakenlm[gguf]")

from gguf_files import WIDE
from gguf_files import write as write_gguf

pytestmark = pytest.mark.reliability

REPORTS = Path(__file__).parents[1] / "golden" / "versions" / "0.1.0"
PROFILE = Path(krakenlm.__file__).parent / "plan" / "profiles" / "devices" / "a100-40gb.toml"
CASES = int(os.environ.get("CASES", "40"))
SECONDS = 20.0
"""That a file may take; nearly all of it is a margin for busy machines."""
MEMORY = 64 << 20
"""Bytes that reading a file of a few hundred kilobytes may add to the process."""


class Kind(NamedTuple):
    """A file, and who reads it.

    Attributes:
        file: within a folder that is whole.
        read: what reads the folder.
        is_json: whether its values are worth changing one by one.
    """

    file: str
    read: Callable[[Path], object]
    is_json: bool = False


def weights(folder: Path) -> None:
    config = read_config(folder)
    (shard,) = split(config, 1)
    read_shard(folder, shard, torch.float32)


def bring_in(
    source: Any, folder: Path, write: Callable[[Any, Path], object] = import_model
) -> None:
    out = folder.with_name("out")
    shutil.rmtree(out, ignore_errors=True)
    try:
        write(source, out)
    except BaseException:
        assert not out.exists(), "half a model was written"
        raise


KINDS = {
    "config.json": Kind("model/config.json", lambda folder: weights(folder / "model"), True),
    "tensors": Kind("model/model.safetensors", lambda folder: weights(folder / "model")),
    "tokenizer": Kind("model/tokenizer.json", lambda folder: read_tokenizer(folder / "model")),
    "manifest": Kind(
        "data/manifest.json", lambda folder: open_split(folder / "data", "train"), True
    ),
    "token file": Kind("data/train-00000.bin", lambda folder: open_split(folder / "data", "train")),
    "recipe": Kind(
        "recipe.toml", lambda folder: read_recipe(folder / "recipe.toml", lambda data: 300)
    ),
    "another family's config.json": Kind(
        "llama/config.json", lambda folder: bring_in(FolderSource(folder / "llama"), folder), True
    ),
    "another family's tensors": Kind(
        "llama/model.safetensors", lambda folder: bring_in(FolderSource(folder / "llama"), folder)
    ),
    "a checkpoint of the authors' release": Kind(
        "release.pt", lambda folder: bring_in(folder / "release.pt", folder, convert)
    ),
    "a profile of a machine": Kind(
        "profile.toml", lambda folder: read_profiles([folder / "profile.toml"])
    ),
    "a report of latencies": Kind(
        "latency.json", lambda folder: LatencyReport.load(folder / "latency.json"), True
    ),
    "a report of an evaluation": Kind(
        "eval.json", lambda folder: EvalReport.load(folder / "eval.json"), True
    ),
    "GGUF": Kind("model.gguf", lambda folder: bring_in(GgufSource(folder / "model.gguf"), folder)),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, tiny_model, tiny_data) -> Path:
    """A folder in which everything can be read."""
    folder = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(tiny_model, folder / "model")
    shutil.copytree(tiny_data, folder / "data")
    recipe = tiny.recipe_text(Path("data"), Path("run"))
    (folder / "recipe.toml").write_text(recipe, encoding="utf-8")
    foreign.make("llama").save_pretrained(folder / "llama")
    torch.save(make_checkpoint(), folder / "release.pt")
    shutil.copy(PROFILE, folder / "profile.toml")
    for report in ("latency.json", "eval.json"):
        shutil.copy(REPORTS / report, folder)
    write_gguf(foreign.make("llama", **WIDE), folder / "model.gguf")
    for kind in KINDS.values():
        kind.read(folder)
    return folder


NUMBERS = st.one_of(
    st.integers(-3, 3), st.sampled_from([1 << 31, 1 << 63, 1 << 200, -(1 << 63)]), st.floats()
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.text(max_size=6)),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)
PLACES = st.floats(0, 1, exclude_max=True)
DEPTHS = st.integers(1, 200_000)
EDITS = st.lists(
    st.tuples(PLACES, st.integers(0, 9), st.binary(max_size=9)), min_size=1, max_size=4
)


def edited(content: bytes, edits: list[tuple[float, int, bytes]], kept: float) -> bytes:
    """Bytes replaced at places, most of them in the head, and the end cut off."""
    found = bytearray(content)
    for place, removed, new in edits:
        start = int(place**3 * len(found))
        found[start : start + removed] = new
    return bytes(found[: int(len(found) * kept)])


def with_another_length(content: bytes, length: int) -> bytes:
    """A header that says it is longer or shorter than it is."""
    return struct.pack("<Q", length) + content[8:]


def changed(values: Any, place: float, value: Any) -> Any:
    """One value somewhere in a table replaced, or left out where it becomes an empty text."""
    places: list[tuple[Any, Any]] = []

    def walk(node: Any) -> None:
        for key in node if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                walk(node[key])

    walk(values)
    node, key = places[int(place * len(places))]
    if value == "" and isinstance(node, dict):
        del node[key]
    else:
        node[key] = value
    return values


def damaged(kind: Kind, content: bytes) -> st.SearchStrategy[bytes]:
    kept = st.one_of(st.just(1.0), st.just(1.0), PLACES)
    ways = [st.builds(lambda edits, kept: edited(content, edits, kept), EDITS, kept)]
    if kind.is_json:
        ways.append(
            st.builds(
                lambda place, value: json.dumps(
                    changed(json.loads(content), place, value)
                ).encode(),
                PLACES,
                VALUES,
            )
        )
        ways.append(DEPTHS.map(lambda depth: b"[" * depth))
    if kind.file.endswith(".toml"):
        ways.append(DEPTHS.map(lambda depth: content + b"\nx = " + b"[" * depth))
    if kind.file.endswith(".safetensors"):
        lengths = st.integers(0, 2**64 - 1)
        ways.append(lengths.map(lambda length: with_another_length(content, length)))
    return st.one_of(ways)


def memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_read_or_refused_in_one_line(name, whole, tmp_path, figure):
    kind = KINDS[name]
    folder = tmp_path / "whole"
    shutil.copytree(whole, folder)
    file = folder / kind.file
    content = file.read_bytes()
    refused = [0, 0]

    @settings(
        max_examples=CASES, deadline=None, database=None, derandomize=True,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(damaged(kind, content))
    def try_it(bad: bytes) -> None:
        file.write_bytes(bad)
        begun, before = time.monotonic(), memory()
        try:
            kind.read(folder)
        except KrakenError as error:
            refused[0] += 1
            assert "\n" not in str(error)
        refused[1] += 1
        assert time.monotonic() - begun < SECONDS
        assert memory() - before < MEMORY

    try_it()
    figure(
        f"damaged files: {name}",
        f"{refused[1]:,} cases, {refused[0]:,} refused in one line, the others read",
        "10,000 cases together, no other end",
    )
    assert refused[0] > refused[1] / 4
