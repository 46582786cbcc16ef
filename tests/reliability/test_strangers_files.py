"""Files from strangers that would run code, lead out of their folder, or fill the memory."""

import json
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

import foreign
import tiny
from krakenlm.data import chat as chat_module
from krakenlm.data.chat import Chat, chat_prompts
from krakenlm.data.folder_tokenizer import read_tokenizer
from krakenlm.data.tokens import open_split
from krakenlm.errors import KrakenError
from krakenlm.model.checkpoint import read_config, read_shard
from krakenlm.model.shard import split

pytestmark = pytest.mark.reliability

CODE = 'from pathlib import Path; Path(__file__).with_name("it-ran").touch()\n'
AUTO_MAP = {
    "AutoConfig": "modeling_x.X",
    "AutoModelForCausalLM": "modeling_x.X",
    "AutoTokenizer": ["modeling_x.X", "modeling_x.X"],
}
# As a model folder may bring them, also under names that Python looks for by itself.
MODULES = ("modeling_x.py", "__init__.py", "conftest.py", "sitecustomize.py", "torch.py")


def with_code(folder: Path) -> None:
    for module in MODULES:
        (folder / module).write_text(CODE, encoding="utf-8")
    for name in ("config.json", "tokenizer_config.json"):
        values = json.loads((folder / name).read_text(encoding="utf-8"))
        (folder / name).write_text(json.dumps({**values, "auto_map": AUTO_MAP}), encoding="utf-8")


def test_a_model_folder_runs_no_code(tiny_model, tokenizer, tmp_path, figure):
    """Whether a command takes such a folder or refuses it; it is the current folder as well."""
    own, other = tmp_path / "own", tmp_path / "other"
    shutil.copytree(tiny_model, own)
    foreign.make("llama").save_pretrained(other)
    shutil.copytree(tokenizer, other, dirs_exist_ok=True)
    (tmp_path / "text.txt").write_text(tiny.text(50), encoding="utf-8")
    commands = {
        own: [
            ["generate", own, "--prompt", "a", "--max-new-tokens", 1],
            ["generate", own, "--prompt", "a", "--max-new-tokens", 1, "--devices", 2],
            ["perplexity", own, tmp_path / "text.txt"],
            ["convert", own, tmp_path / "rewired", "--wiring", "standard", "--sublayers", 2],
            ["plan", own],
        ],
        other: [["convert", other, tmp_path / "brought-in"]],
    }
    for folder, calls in commands.items():
        with_code(folder)
        for call in calls:
            ended = subprocess.run(
                [Path(sys.executable).with_name("krakenlm"), *map(str, call)],
                cwd=folder, capture_output=True, text=True,
            )  # fmt: skip
            assert ended.returncode in (0, 2), ended.stderr
            assert not (folder / "it-ran").exists(), call
    figure(
        "model folders with code of their own",
        f"{sum(map(len, commands.values()))} commands run or refuse them; none of the code ran",
        "no code is imported",
    )


def test_names_lead_nowhere_else(tiny_model, tiny_data, tmp_path, figure):
    model, data = tmp_path / "model", tmp_path / "data"
    shutil.copytree(tiny_model, model)
    shutil.copytree(tiny_data, data)
    shutil.move(model / "model.safetensors", tmp_path / "elsewhere.safetensors")
    shutil.move(data / "train-00000.bin", tmp_path / "elsewhere.bin")
    (shard,) = split(read_config(model), 1)
    places = ("../elsewhere{}", f"{tmp_path}/elsewhere{{}}", "./../model/../elsewhere{}")
    for place in places:
        names = load_file(tmp_path / "elsewhere.safetensors")
        index = {"weight_map": dict.fromkeys(names, place.format(".safetensors"))}
        (model / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
        with pytest.raises(KrakenError, match="is missing"):
            read_shard(model, shard, None)
        manifest = json.loads((tiny_data / "manifest.json").read_text(encoding="utf-8"))
        manifest["splits"]["train"]["shards"][0]["file"] = place.format(".bin")
        (data / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
        with pytest.raises(KrakenError, match="needs the name of a file in the directory"):
            open_split(data, "train")
    figure(
        "names in an index and a manifest that lead to other folders",
        f"{2 * len(places)} refused",
        "refused",
    )


TEMPLATES = {
    "the class of a value": "{{ messages[0].content.__class__.__mro__ }}",
    "Python's insides through a namespace": "{{ namespace(__init__=1) }}",
    "a format string": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    "a file": "{% include '/etc/passwd' %}",
    "changing its arguments": "{{ messages.append(1) }}",
    "all of the memory": "{{ 'x' * 10**10 }}",
    "no end": "{% for a in range(9999) %}{% for b in range(9999) %}{% endfor %}{% endfor %}",
}


def test_a_chat_template_reaches_nothing(tokenizer, tmp_path, monkeypatch, figure):
    monkeypatch.setattr(chat_module, "SECONDS", 0.5)
    folder = tmp_path / "model"
    shutil.copytree(tokenizer, folder)
    for name, template in TEMPLATES.items():
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
        with pytest.raises(KrakenError) as refused:
            print(name, chat_prompts(folder, read_tokenizer(folder), ["a"], Chat(None)))  # noqa: T201
        assert "\n" not in str(refused.value)
    figure(
        "chat templates that reach for insides, files, memory or time",
        f"{len(TEMPLATES)} refused in one line",
        "no file, no attribute that it should not have",
    )


MEGABYTES = 64
READ = """
import sys
from pathlib import Path
import torch
from krakenlm.errors import KrakenError
from krakenlm.model.checkpoint import read_config, read_shard
from krakenlm.model.shard import split

def peak():
    status = Path("/proc/self/status").read_text()  # getrusage would say the starter's
    return 1024 * int(status.split("VmHWM:")[1].split()[0])

small, folder = map(Path, sys.argv[1:])
read_shard(small, split(read_config(small), 1)[0], None)
before = peak()
try:
    read_shard(folder, split(read_config(folder), 1)[0], None)
    said = "read"
except KrakenError as error:
    said = f"refused: {error}"
print(peak() - before, said)
"""


@pytest.mark.slow
def test_a_large_damaged_file_takes_no_more_than_twice_its_size(tiny_model, tmp_path, figure):
    """A model of 64 MB: whole, cut, with a header that lies about its length and its tensors."""
    from krakenlm.integrations.hf import KrakenForCausalLM
    from krakenlm.integrations.hf_config import KrakenConfig

    folder = tmp_path / "model"
    config = tiny.model_config(vocab_size=MEGABYTES * 4096, hidden_size=64)
    KrakenForCausalLM(KrakenConfig.from_model_config(config)).save_pretrained(folder)
    file = folder / "model.safetensors"
    content = file.read_bytes()
    assert len(content) > MEGABYTES << 20
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    name = "model.embed_tokens.weight"

    def claiming(**changes: object) -> bytes:
        claimed = json.dumps({**header, name: {**header[name], **changes}}).encode()
        return struct.pack("<Q", len(claimed)) + claimed + content[8 + length :]

    rows, width = header[name]["shape"]
    damaged = {
        "whole": content,
        "cut": content[: len(content) // 2],
        "a header of 2**40 bytes": struct.pack("<Q", 1 << 40) + content[8:],
        "a header of all bytes": struct.pack("<Q", len(content) - 8) + content[8:],
        "a hundred times the rows": claiming(shape=[100 * rows, width]),
        "another type": claiming(dtype="F64"),
        "offsets that overlap": claiming(data_offsets=[0, len(content)]),
    }
    most = 0.0
    for what, bad in damaged.items():
        file.write_bytes(bad)
        command = [sys.executable, "-c", READ, str(tiny_model), str(folder)]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        growth, _, outcome = said.partition(" ")
        assert outcome.startswith("read" if what == "whole" else "refused: "), (what, outcome)
        most = max(most, int(growth) / len(content))
    figure(
        f"a model file of {MEGABYTES} MB, whole and damaged in {len(damaged) - 1} ways",
        f"at most {most:.2f} times its size in memory",
        "2 times its size",
    )
    assert most <= 2.05  # what the interpreter itself takes meanwhile is a part of it
