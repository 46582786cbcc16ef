"""``--sublayers``: one checkpoint of a shared model, laid out as any N where it is loaded."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, GenerationConfig

import krakenlm
import tiny
from krakenlm.config import ModelConfig, with_sublayers
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.engine.options import EngineOptions
from krakenlm.errors import KrakenError
from krakenlm.eval.model import load_causal_lm
from krakenlm.eval.perplexity import perplexity, perplexity_of_each
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.integrations.rewiring import rewire
from krakenlm.model.checkpoint import read_config
from krakenlm.serving.options import ServingOptions
from krakenlm.serving.serve import plan
from reference import in_branches, reference_logits

pytestmark = pytest.mark.usefixtures("own_signals")

OWN = 2
CHOICES = (1, 2, 3, 4, 6)
IDS = torch.randint(tiny.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(3))
FIELDS = {
    "plain": {},
    "every option": {
        "heads_per_sublayer": 24, "kv_heads_per_sublayer": 12, "head_dim": 2, "position": "rope",
        "norm": "rmsnorm", "activation": "swiglu", "tie_word_embeddings": False,
    },
}  # fmt: skip


def of_one_branch(**changes) -> ModelConfig:
    return tiny.model_config(
        **{
            "wiring": "shared", "num_sublayers": 1, "hidden_size": 24, "heads_per_sublayer": 12,
            "ffn_dim": 60, "bias": True, "initializer_range": 0.3, **changes,
        }
    )  # fmt: skip


def save(config: ModelConfig, folder: Path) -> KrakenForCausalLM:
    torch.manual_seed(0)
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config, eos_token_id=7)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def shared(tmp_path_factory, tiny_data) -> Path:
    """A model of two sub-layers with the data's tokenizer; not to be changed."""
    folder = tmp_path_factory.mktemp("shared") / "model"
    save(of_one_branch(num_sublayers=OWN, heads_per_sublayer=6, ffn_dim=30), folder)
    load_tokenizer(tiny_data).save_pretrained(folder)
    return folder


@pytest.fixture
def cli(capfd, tmp_path, monkeypatch) -> Callable[..., tiny.Outcome]:
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: tiny.call(capfd, *arguments)


@pytest.mark.parametrize("fields", FIELDS.values(), ids=FIELDS)
def test_transformers_reads_one_checkpoint_as_any_n(fields, tmp_path):
    config = of_one_branch(**fields)
    stored = save(config, tmp_path).double().state_dict()
    found = {}
    for n in CHOICES:
        model = load_causal_lm(tmp_path, sublayers=n).double()
        wanted = reference_logits(with_sublayers(config, n), in_branches(config, stored, n), IDS)
        with torch.no_grad():
            found[n] = model(IDS).logits
        torch.testing.assert_close(found[n], wanted, atol=1e-9, rtol=0)
        assert (model.config.num_sublayers, model.config.eos_token_id) == (n, 7)
    standard = reference_logits(config.replace(wiring="standard"), stored, IDS)
    torch.testing.assert_close(found[1], standard, atol=1e-12, rtol=0)
    assert not torch.allclose(found[1], found[2], atol=1e-3)
    assert not torch.allclose(found[2], found[4], atol=1e-3)


def test_from_pretrained_takes_another_n_by_its_config(shared, own_model):
    config = KrakenConfig.from_model_config(with_sublayers(read_config(shared), 4))
    for loader in (AutoModelForCausalLM, KrakenForCausalLM):
        model = loader.from_pretrained(shared, config=config, dtype=torch.bfloat16)
        assert (model.config.num_sublayers, model.dtype) == (4, torch.bfloat16)
        assert model.generation_config.eos_token_id == 7
        assert model.name_or_path == str(shared)
    chosen = GenerationConfig(eos_token_id=9)
    model = KrakenForCausalLM.from_pretrained(shared, config=config, generation_config=chosen)
    assert model.generation_config.eos_token_id == 9
    own = KrakenConfig.from_pretrained(shared)
    assert KrakenForCausalLM.from_pretrained(shared, config=own).config.num_sublayers == OWN
    # Other sizes than any layout of these weights, and weights that have one layout only.
    for folder, fits in ((shared, {"ffn_dim": 32}), (own_model, {"num_sublayers": 4})):
        wrong = KrakenConfig.from_model_config(read_config(folder).replace(**fits))
        with pytest.raises(RuntimeError, match="mismatch"):
            KrakenForCausalLM.from_pretrained(folder, config=wrong)


def test_damaged_weights_are_named_as_they_are_read(shared, tmp_path):
    save(read_config(shared), tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    del state["model.layers.1.attention.qkv.weight"]
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(KrakenError, match=r"layers\.1\.attention\.qkv\.weight is missing") as found:
        load_causal_lm(tmp_path, sublayers=4)
    assert "config.json:" not in str(found.value)


def test_answers_are_those_of_the_model_laid_out_so(shared, tmp_path):
    answers = {}
    for n in (1, 4):
        rewire(shared, tmp_path / str(n), num_sublayers=n)
        options = EngineOptions(sublayers=n)
        answers[n] = krakenlm.generate(shared, ["Line 1", "x"], max_new_tokens=9, options=options)
        assert answers[n] == krakenlm.generate(tmp_path / str(n), ["Line 1", "x"], max_new_tokens=9)
    assert answers[1] != answers[4]


def test_the_command_answers_with_n(cli, shared):
    said = []
    for chosen in ([], ["--sublayers", "2"], ["--sublayers", "6", "--placement", "6"]):
        outcome = cli("generate", shared, "--prompt", "Line", "--max-new-tokens", "9", *chosen)
        assert outcome.code == 0, outcome.err
        said.append(outcome.out)
    assert said[0] == said[1] != said[2]


def test_perplexity_of_each_n_is_that_of_the_model_laid_out_so(shared, tiny_data, tmp_path):
    found = perplexity_of_each(shared, tiny_data, [4, 1], device="cpu", batch_size=2)
    assert list(found) == [OWN, 4, 1]
    assert found[OWN] == perplexity(shared, tiny_data, device="cpu", batch_size=2)
    for n in (4, 1):
        rewire(shared, tmp_path / str(n), num_sublayers=n)
        laid_out = perplexity(tmp_path / str(n), tiny_data, device="cpu", batch_size=2)
        assert found[n].loss == pytest.approx(laid_out.loss, abs=1e-6)
        assert abs(found[n].loss - found[OWN].loss) > 1e-3


def test_one_table_says_what_each_n_costs(cli, shared, tiny_data):
    command = ["perplexity", shared, tiny_data, "--device", "cpu", "--json", "found.json"]
    outcome = cli(*command, "--sublayers", "1,2,4")
    assert outcome.code == 0, outcome.err
    written = json.loads(Path("found.json").read_text())
    assert written["own_sublayers"] == OWN
    results = {result["sublayers"]: result for result in written["results"]}
    assert list(results) == [1, 2, 4]
    rows = {line.split()[0]: line.split() for line in outcome.out.splitlines() if line.strip()}
    for n, result in results.items():
        change = 100 * (result["perplexity"] / results[OWN]["perplexity"] - 1)
        assert result["perplexity_difference_percent"] == pytest.approx(change)
        numbers = [f"{result[k]:.4f}" for k in ("loss", "bits_per_byte")]
        against = ["its", "own"] if n == OWN else [f"{change:+.2f}", "%"]
        perplexity_of_n = f"{result['perplexity']:.2f}"
        assert rows[str(n)] == [str(n), numbers[0], perplexity_of_n, numbers[1], *against]
    assert f"{results[1]['tokens']:,}" in outcome.out


def test_one_n_prints_as_without_the_option(cli, shared, tiny_data):
    command = ["perplexity", shared, tiny_data, "--device", "cpu", "--json", "found.json"]
    plain, own, other = (
        cli(*command, *n).out for n in ([], ["--sublayers", "2"], ["--sublayers", "4"])
    )
    assert plain == own != other
    assert [line.split()[0] for line in plain.splitlines()] == [
        line.split()[0] for line in other.splitlines()
    ]
    assert json.loads(Path("found.json").read_text())["sublayers"] == 4


def test_evaluation_asks_the_model_of_that_n(shared):
    pytest.importorskip("lm_eval", reason="needs the extra `eval`")
    from krakenlm.eval.harness import with_transformers

    lm = with_transformers(shared, "cpu", 4)(1)
    assert (lm.sublayers, lm.model.config.num_sublayers) == (4, 4)  # type: ignore[attr-defined]
    assert lm.parameters == sum(p.numel() for p in load_causal_lm(shared).parameters())
    assert with_transformers(shared, "cpu")(1).sublayers is None


def served(folder: Path, *flags: str, devices: int = 2, sublayers: int | None = None) -> list[str]:
    launch = plan(folder, devices, flags, on_cpu=True, environment={}, sublayers=sublayers)
    return launch.command


def test_the_server_is_told_n_in_a_part_of_a_table(shared):
    name = "--additional-config.krakenlm.sublayers"
    assert name not in served(shared)
    command = served(shared, "--additional-config.krakenlm.overlap", "sync", sublayers=4, devices=4)
    assert command[command.index(name) + 1] == "4"
    assert ServingOptions.from_additional_config({"krakenlm": {"sublayers": 4}}).sublayers == 4
    whole = ["--additional-config", "{}"]
    assert name not in served(shared, *whole)
    with pytest.raises(
        KrakenError, match=r"--sublayers 4: .*--additional-config\.krakenlm\.OPTION"
    ):
        served(shared, *whole, sublayers=4)


def test_one_sublayer_is_served_on_as_many_devices_as_the_standard_model(shared):
    served(shared, sublayers=1, devices=6)
    with pytest.raises(KrakenError, match=r"5 devices: .*12 key and value heads"):
        served(shared, sublayers=1, devices=5)
    with pytest.raises(KrakenError, match=r"3 devices: .*2 sub-layers.*choose another N"):
        served(shared, devices=3)


@pytest.mark.parametrize(
    ("model", "n", "said"),
    [
        ("shared", 5, "--sublayers 5 does not divide 12 query heads: use one of 1, 2, 3, 4, 6, 12"),
        ("shared", 0, "--sublayers 0"),
        ("kraken", 2, "--sublayers 2: this kraken model has 2 sub-layers with norms of their"),
        ("lagged", 2, "--sublayers 2: a lagged model is the same function for any number"),
    ],
)
def test_an_n_that_is_no_choice_is_refused_by_every_command(
    model, n, said, cli, shared, tiny_model, tiny_data, tmp_path
):
    lagged = tmp_path / "lagged"
    folder = {"shared": shared, "kraken": tiny_model, "lagged": lagged}[model]
    if model == "lagged":
        save(tiny.model_config(wiring="lagged"), lagged)
        load_tokenizer(tiny_data).save_pretrained(lagged)
    for command in (
        ["generate", folder, "--prompt", "x"],
        ["perplexity", folder, tiny_data, "--json", "out.json"],
        ["eval", folder, "--json", "out.json"],
    ):
        outcome = cli(*command, "--sublayers", n)
        assert outcome.code == 2, (command, outcome.err)
        assert len(outcome.complaints) == 1 and said in outcome.complaints[0], outcome.err
        assert outcome.out == ""
    with pytest.raises(KrakenError, match=said):
        served(folder, sublayers=n)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("given", "said"),
    [("1,5", "5 does not divide"), ("2,2", "give each number once"), ("1,x", "give a number")],
)
def test_all_of_several_n_are_checked_first(cli, shared, tiny_data, given, said):
    outcome = cli("perplexity", shared, tiny_data, "--sublayers", given)
    assert outcome.code == 2
    assert len(outcome.complaints) == 1 and said in outcome.complaints[0]
    assert "tokens" not in outcome.err
