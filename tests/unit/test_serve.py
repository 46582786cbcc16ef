"""What `krakenlm serve` starts."""

import json
import os
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest

import tiny
from krakenlm.errors import KrakenError
from krakenlm.serving import benchmark, machine
from krakenlm.serving import serve as module
from krakenlm.serving.benchmark_report import Load, ServingReport, table
from krakenlm.serving.options import ServingOptions
from krakenlm.serving.serve import Launch, plan


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "model"
    made.mkdir()
    (made / "config.json").write_text(json.dumps(tiny.model_config().to_hf_dict()))
    return made


def started(folder, *flags, devices=2, on_cpu=True, environment=None):
    return plan(folder, devices, flags, on_cpu=on_cpu, environment=environment or {})


def values(command):
    """Flags with the value behind each."""
    return {flag: command[i + 1] for i, flag in enumerate(command[:-1]) if flag[:2] == "--"}


def test_it_stays_on_this_machine_and_says_how_to_ask(folder):
    launch = started(folder)
    found = values(launch.command)
    assert found["--host"] == "127.0.0.1"
    assert found["--tensor-parallel-size"] == "2"
    assert found["--dtype"] == "float32"
    assert launch.url == "http://127.0.0.1:8000"
    assert launch.url in launch.curl
    assert found["--served-model-name"] == "model"
    assert '"model": "model"' in launch.curl


@pytest.mark.parametrize(
    "flags", [("--port", "9", "--dtype", "bfloat16"), ("--port=9", "--dtype=bfloat16")]
)
def test_what_the_user_sets_is_left_alone(folder, flags):
    launch = started(folder, *flags, environment={"VLLM_CPU_KVCACHE_SPACE": "7"})
    assert launch.command[5:-1].count("--port") + launch.command.count("--port=9") == 1
    assert "float32" not in launch.command
    assert launch.url.endswith(":9")
    assert "VLLM_CPU_KVCACHE_SPACE" not in launch.environment


def test_each_rank_gets_a_share_of_the_cores(folder):
    bound = started(folder, devices=2).environment["VLLM_CPU_OMP_THREADS_BIND"].split("|")
    assert len(bound) == 2
    cores = os.sched_getaffinity(0)
    assert {int(core) for share in bound for core in share.split(",")} <= cores


def test_a_node_of_several_binds_its_own_ranks_and_may_only_compute(folder):
    first = started(folder, "--nnodes", "2", "--node-rank", "0", devices=2)
    assert "|" not in first.environment["VLLM_CPU_OMP_THREADS_BIND"]
    assert first.url
    assert started(folder, "--nnodes=2", "--node-rank=1", "--headless", devices=2).url == ""
    for nodes in ("3", "none", "0"):
        with pytest.raises(KrakenError, match=f"--nnodes {nodes}"):
            started(folder, "--nnodes", nodes, devices=2)


def test_gpus_need_no_settings_for_cpus(folder):
    launch = started(folder, on_cpu=False)
    assert launch.environment == {}
    assert "--dtype" not in launch.command


def test_a_model_without_a_chat_template_gets_a_plain_one(folder):
    assert values(started(folder).command)["--chat-template"].endswith("plain_chat.jinja")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    assert "--chat-template" not in started(folder).command


@pytest.mark.parametrize("devices", [0, 3, 4])
def test_devices_that_do_not_divide_the_model_are_refused(folder, devices):
    with pytest.raises(KrakenError, match="devices"):
        started(folder, devices=devices)


def test_a_missing_vllm_is_named(folder, monkeypatch):
    monkeypatch.setattr(machine, "find_spec", lambda name: None)
    with pytest.raises(KrakenError, match="make vllm-env"):
        module.serve(folder, 1, [])


def test_options_are_read_strictly():
    assert ServingOptions.from_additional_config({}).overlap == "auto"
    read = ServingOptions.from_additional_config({"krakenlm": {"overlap": "sync"}, "other": 1})
    assert read.overlap == "sync"
    for wrong in ({"overlap": "never"}, {"overlaps": "sync"}, "sync"):
        with pytest.raises(KrakenError, match=r"krakenlm|overlap"):
            ServingOptions.from_additional_config({"krakenlm": wrong})


def contestant(label="a"):
    return benchmark.Contestant(Path(label), label, "kraken", nullcontext)


def served(model, concurrency, ttft, index=0):
    load = Load(concurrency=concurrency, input_len=8, output_len=2, num_prompts=4)
    found = {
        "completed": 4, "median_ttft_ms": ttft, "p99_ttft_ms": 2 * ttft, "median_tpot_ms": 3.0,
        "output_throughput": 50.0,
    }  # fmt: skip
    return benchmark.summary(found, contestant(model), load, index)


def test_models_are_compared_under_the_same_load():
    results = [
        served("a", 1, 30.0), served("a", 4, 50.0), served("b", 1, 20.0), served("b", 4, 100.0),
    ]  # fmt: skip
    drawn = table(results)
    columns = {column.header: list(column.cells) for column in drawn.columns}
    assert columns["at a time"] == ["1", "1", "4", "4"]
    assert columns["TTFT speedup"] == ["1.00×", "1.50×", "1.00×", "0.50×"]


def test_speedups_are_taken_within_rounds():
    results = [served("a", 1, 10.0), served("b", 1, 5.0), served("a", 1, 40.0, 1)]
    results += [served("b", 1, 10.0, 1)]
    drawn = table(results)
    columns = {column.header: list(column.cells) for column in drawn.columns}
    assert columns["TTFT speedup"] == ["1.00×", "3.00× (2.00–4.00)"]
    assert columns["TTFT, ms"] == ["25.0 (10.0–40.0)", "7.5 (5.0–10.0)"]


def test_requests_that_failed_are_no_result():
    load = Load(concurrency=1, input_len=8, output_len=2, num_prompts=4)
    with pytest.raises(KrakenError, match="3 of 4"):
        benchmark.summary({"completed": 3}, contestant(), load, 0)


def measured(monkeypatch, folder, **options):
    monkeypatch.setattr(benchmark, "vllm_is_for_cpus", lambda: True)
    monkeypatch.setattr(benchmark, "version", lambda name: "0.32.0")
    load = Load(concurrency=1, input_len=8, output_len=2, num_prompts=4)
    return benchmark.measure([folder], 2, [load], **options)


ANSWER = {
    "completed": 4, "median_ttft_ms": 1.0, "p99_ttft_ms": 2.0, "median_tpot_ms": 3.0,
    "output_throughput": 50.0,
}  # fmt: skip


def test_servers_that_run_already_are_asked(monkeypatch, folder, tmp_path):
    asked = []

    def ask(endpoint, tokenizer, load, seed):
        asked.append((endpoint.url, endpoint.name, tokenizer, seed))
        return ANSWER

    monkeypatch.setattr(benchmark, "ask", ask)
    monkeypatch.setattr(benchmark, "_name_at", lambda url: "theirs")
    report = measured(monkeypatch, folder, rounds=2, urls=["http://there:8000/"])
    assert asked == [("http://there:8000", "theirs", folder, seed) for seed in (0, 1)]
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report.to_json()))
    assert ServingReport.load(path) == report
    assert report.devices == 0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "no such file"),
        ("[]", "is no benchmark of served models"),
        ('{"kind": "serving", "schema_version": 2}', "schema version 2, .* above 1"),
    ],
)
def test_other_files_are_no_report(text, said, tmp_path):
    path = tmp_path / "report.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(KrakenError, match=said):
        ServingReport.load(path)


def test_every_model_needs_a_server(monkeypatch, folder):
    with pytest.raises(KrakenError, match="one for each"):
        measured(monkeypatch, folder, urls=["http://a", "http://b"])
    with pytest.raises(KrakenError, match="does not say which model"):
        measured(monkeypatch, folder, urls=["http://127.0.0.1:9"])


STUB = """#!/bin/sh
echo "$@" >> {said}
[ -e {ends} ] && exit 3
exec sleep 60
"""


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """A ``krakenlm`` of another node: notes what it was asked, and ends where ``ends`` exists."""
    said, ends = tmp_path / "said", tmp_path / "ends"
    command = tmp_path / "bin" / "krakenlm"
    command.parent.mkdir()
    command.write_text(STUB.format(said=said, ends=ends))
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{command.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(benchmark, "ask", lambda *_, **__: ANSWER)
    return said, ends


def served_by_two_nodes(monkeypatch, folder, started):
    """Measure with a server that takes the time its peer needs to speak, and calls ``started``."""

    @contextmanager
    def running(model, devices, flags, check):
        deadline = time.monotonic() + 30
        while not started() and time.monotonic() < deadline:
            check()
            time.sleep(0.01)
        yield Launch([], {}, "http://here", " ".join(flags))

    monkeypatch.setattr(benchmark, "running", running)
    nodes = benchmark.Nodes(("env A=1",), "10.0.0.1")
    return measured(monkeypatch, folder, nodes=nodes)


def test_the_other_nodes_serve_for_as_long_as_the_first_is_measured(monkeypatch, folder, peer):
    said, _ = peer
    report = served_by_two_nodes(monkeypatch, folder, said.exists)
    assert report.flags[1:] == ("--nnodes", "2", "--node-rank", "0", "--master-addr", "10.0.0.1")
    asked = said.read_text().split()
    assert asked[:4] == ["serve", str(folder), "--devices", "2"]
    assert asked[5:] == [*report.flags[1:3], "--node-rank", "1", *report.flags[5:], "--headless"]
    children = psutil.Process().children(recursive=True)
    assert not [child for child in children if "sleep" in child.name()]


def test_a_node_that_ends_before_the_server_answers_is_named(monkeypatch, folder, peer):
    said, ends = peer
    ends.touch()
    with pytest.raises(KrakenError, match=r"--peer 'env A=1': the server there ended with 3"):
        served_by_two_nodes(monkeypatch, folder, lambda: False)
    assert said.exists()


@pytest.mark.parametrize(
    ("fields", "options", "said"),
    [
        ((("ssh b",), ""), {}, "need both"),
        (((), "10.0.0.1"), {}, "need both"),
        ((("no/such/program",), "10.0.0.1"), {}, "'no/such/program': cannot be run"),
        ((("ssh b",), "10.0.0.1"), {"urls": ["http://a"]}, "has its nodes"),
    ],
)
def test_nodes_that_cannot_be_are_refused(monkeypatch, folder, fields, options, said):
    with pytest.raises(KrakenError, match=said):
        measured(monkeypatch, folder, nodes=benchmark.Nodes(*fields), **options)
