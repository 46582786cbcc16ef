import json
import math
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from krakenlm.data.tokenizer import encode, load_tokenizer, plain_encoder, train_tokenizer
from krakenlm.data.tokens import SPLITS, open_split, prepare
from krakenlm.errors import KrakenError
from krakenlm.eval import windows as windows_module
from krakenlm.eval.model import load_causal_lm, pick_device
from krakenlm.eval.perplexity import _check_window, perplexity, sum_of_losses
from krakenlm.eval.windows import documents

VOCABULARY, CONTEXT = 300, 16
TEXT = "".join(f"Line {i} of the text: été 🦊 {i * i}.\n" for i in range(16))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A tiny random GPT-2 with a tokenizer of its own, a text, and the text prepared."""
    folder = tmp_path_factory.mktemp("made")
    (folder / "text.txt").write_text(TEXT)
    tokenizer = train_tokenizer([folder / "text.txt"], VOCABULARY)
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCABULARY, n_positions=CONTEXT, n_embd=16, n_layer=2, n_head=2,
        bos_token_id=0, eos_token_id=0, initializer_range=0.5,
    )  # fmt: skip
    GPT2LMHeadModel(config).save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    prepare([folder / "text.txt"], str(folder / "model"), folder / "data", validation_fraction=0.3)
    return folder


@pytest.fixture(scope="module")
def several(made):
    """Tokens of several documents of unequal length."""
    lines = [json.dumps({"text": "a document of some length. " * (1 + i % 4)}) for i in range(20)]
    lines = [line.replace("some", f"{i}") for i, line in enumerate(lines)]
    (made / "several.jsonl").write_text("\n".join(lines))
    texts, tokenizer = [made / "several.jsonl"], str(made / "model")
    prepare(texts, tokenizer, made / "several", validation_fraction=0.3, shard_tokens=100)
    return made / "several"


@pytest.fixture
def model(made, tmp_path):
    """A copy to damage."""
    return shutil.copytree(made / "model", tmp_path / "model")


def naive_nats(directory, tokens, window, stride=None):
    """One window at a time, one token at a time, in float64."""
    model = GPT2LMHeadModel.from_pretrained(directory).double().eval()
    total, done = 0.0, 1  # nothing predicts the first token
    for start in range(0, len(tokens), stride or window - 1):
        ids = [int(token) for token in tokens[start : start + window]]
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0]
        for position in range(done - start, len(ids)):
            total -= float(logits[position - 1].log_softmax(-1)[ids[position]])
        done = max(done, start + len(ids))
        if done == len(tokens):
            return total
    raise AssertionError("the windows do not reach the end")


def documents_of(tokens, eos=0):
    """Each document as a list that begins with an end-of-text token and ends with another."""
    found = [[eos]]
    for token in tokens[:].tolist():
        found[-1].append(token)
        if token == eos:
            found.append([eos])
    return [document for document in found if len(document) > 1]


@pytest.mark.parametrize(("window", "batch_size"), [(CONTEXT, 1), (CONTEXT, 3), (7, 3), (2, 8)])
def test_equals_a_naive_loop(made, window, batch_size):
    tokens = open_split(made / "data", "validation").tokens
    assert len(tokens) > 3 * CONTEXT
    nats = naive_nats(made / "model", tokens, window)
    found = perplexity(
        made / "model", made / "data", batch_size=batch_size, device="cpu", window=window
    )
    assert found.loss == pytest.approx(nats / (len(tokens) - 1), rel=1e-6)
    assert found.perplexity == pytest.approx(math.exp(nats / (len(tokens) - 1)), rel=1e-6)
    assert (found.tokens, found.window) == (len(tokens) - 1, window)


@pytest.mark.parametrize("length", [2, 3, 15, 16, 17, 31, 32])
def test_every_length_predicts_each_token_once(made, length):
    tokens = np.arange(1, length + 1, dtype=np.uint16)
    model = load_causal_lm(made / "model")
    nats, predicted = sum_of_losses(model, tokens, window=CONTEXT, batch_size=2)
    assert nats == pytest.approx(naive_nats(made / "model", tokens, CONTEXT), rel=1e-6)
    assert predicted == length - 1


SLIDING = [(CONTEXT, 1), (CONTEXT, 5), (CONTEXT, 15), (7, 3), (3, 1)]


@pytest.mark.parametrize(("window", "stride"), SLIDING)
def test_sliding_windows_equal_a_naive_loop(made, window, stride):
    tokens = open_split(made / "data", "validation").tokens
    nats = naive_nats(made / "model", tokens, window, stride)
    found = perplexity(
        made / "model", made / "data", batch_size=3, device="cpu", window=window, stride=stride
    )
    assert found.loss == pytest.approx(nats / (len(tokens) - 1), rel=1e-6)
    assert (found.tokens, found.stride) == (len(tokens) - 1, stride)


@pytest.mark.parametrize(("window", "stride"), [(CONTEXT, None), (CONTEXT, 4), (5, 2)])
def test_documents_one_by_one_equal_a_naive_loop(made, several, window, stride):
    tokens = open_split(several, "train").tokens
    found = documents_of(tokens)
    assert len(found) > 3 and len({len(document) for document in found}) > 2
    nats = sum(naive_nats(made / "model", document, window, stride) for document in found)
    found = perplexity(
        made / "model", several, batch_size=3, device="cpu", split="train",
        window=window, stride=stride, per_document=True,
    )  # fmt: skip
    assert (found.tokens, found.per_document) == (len(tokens), True)
    assert found.loss == pytest.approx(nats / len(tokens), rel=1e-6)
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / found.bytes, rel=1e-6)


def test_documents_of_a_text_file_are_those_of_its_tokens(made, several):
    options = {"device": "cpu", "per_document": True}
    of_text = perplexity(made / "model", several.parent / "several.jsonl", **options)
    parts = [perplexity(made / "model", several, split=split, **options) for split in SPLITS]
    assert of_text.tokens == sum(part.tokens for part in parts)
    nats = sum(part.loss * part.tokens for part in parts)
    assert of_text.loss * of_text.tokens == pytest.approx(nats, rel=1e-6)


def test_documents_are_found_over_the_border_of_what_is_read_at_once(monkeypatch):
    tokens = np.array([5, 0, 0, 7, 8, 9, 0, 4], np.uint16)
    whole = list(documents(tokens, 0))
    assert whole == [(0, 2), (2, 3), (3, 7), (7, 8)]
    for size in (1, 2, 3):
        monkeypatch.setattr(windows_module, "_TOKENS_AT_ONCE", size)
        assert list(documents(tokens, 0)) == whole


@pytest.mark.parametrize("stride", [0, -1, CONTEXT, CONTEXT + 1])
def test_stride_that_does_not_fit_is_refused(made, stride):
    with pytest.raises(KrakenError, match=rf"stride of {stride} tokens .* 1 to {CONTEXT - 1}"):
        perplexity(made / "model", made / "data", stride=stride, device="cpu")


def test_bits_per_byte_of_a_text_file_by_hand(made):
    tokenizer = load_tokenizer(made / "model")
    tokens = [*encode(plain_encoder(tokenizer), [TEXT])[0], tokenizer.eos_token_id]
    nats = naive_nats(made / "model", tokens, CONTEXT)
    found = perplexity(made / "model", made / "text.txt", batch_size=2, device="cpu")
    assert found.bytes == len(TEXT.encode())
    assert found.bits_per_byte == pytest.approx(nats / math.log(2) / len(TEXT.encode()), rel=1e-6)
    assert found.window == CONTEXT


def test_shards_score_as_one_file(made, tmp_path):
    options = {"validation_fraction": 0.3, "shard_tokens": 17}
    prepare([made / "text.txt"], str(made / "model"), tmp_path / "data", **options)
    assert len(open_split(tmp_path / "data", "validation").info.shards) > 2
    one, many = (perplexity(made / "model", p / "data", device="cpu") for p in (made, tmp_path))
    assert one == many


def test_bits_per_byte_of_a_prepared_split(made):
    found = perplexity(made / "model", made / "data", split="train", device="cpu")
    info = open_split(made / "data", "train").info
    assert (found.tokens, found.bytes) == (info.tokens - 1, info.bytes)
    expected = found.loss * found.tokens / math.log(2) / info.bytes
    assert found.bits_per_byte == pytest.approx(expected)


def test_result_as_json(made):
    found = perplexity(made / "model", made / "data", device="cpu")
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
    assert set(found.to_json()) == {
        "loss", "perplexity", "bits_per_byte", "tokens", "bytes",
        "window", "stride", "per_document",
    }  # fmt: skip


def test_command_prints_a_table_and_writes_json(made, tmp_path, capsys):
    from krakenlm.cli.perplexity import perplexity as command

    command(made / "model", made / "data", device="cpu", json=tmp_path / "result.json")
    printed = capsys.readouterr().out
    assert "perplexity" in printed and "bits per byte" in printed
    written = json.loads((tmp_path / "result.json").read_text())
    assert f"{written['loss']:.4f}" in printed


def test_token_outside_the_models_vocabulary_is_refused(made, tmp_path):
    train_tokenizer([made / "text.txt"], 330).save_pretrained(tmp_path / "large")
    prepare([made / "text.txt"], str(tmp_path / "large"), tmp_path / "data")
    largest = int(open_split(tmp_path / "data", "train").tokens.max())
    with pytest.raises(KrakenError, match=rf"token {largest}, outside the vocabulary of 300"):
        perplexity(
            made / "model", tmp_path / "data", split="train", device="cpu", other_tokenizer=True
        )


@pytest.mark.parametrize("window", [CONTEXT + 1, 1, 0])
def test_window_that_does_not_fit_is_refused(made, window):
    with pytest.raises(KrakenError, match=rf"window of {window} tokens .* from 2 to {CONTEXT}"):
        perplexity(made / "model", made / "data", window=window, device="cpu")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch size 0"),
        ({"device": "gpu"}, "device 'gpu' cannot be used"),
        ({"split": "test"}, "no split 'test'"),
        ({"data": "gone"}, "gone does not exist"),
        ({"data": "."}, r"holds no manifest\.json"),
        ({"model": "gone"}, "model gone does not exist"),
        ({"model": "gone", "data": "text.txt"}, "model gone does not exist"),
        ({"model": "text.txt"}, r"model text\.txt is a file"),
        ({"model": "data"}, r"data has no config\.json"),
    ],
)
def test_bad_arguments_are_one_line(made, monkeypatch, arguments, message):
    monkeypatch.chdir(made)
    call = {"model": "model", "data": "data", "device": "cpu"} | arguments
    with pytest.raises(KrakenError, match=message) as caught:
        perplexity(call.pop("model"), call.pop("data"), **call)
    assert "\n" not in str(caught.value)


def test_cuda_that_is_not_there_is_refused():
    if torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(KrakenError, match="device 'cuda' cannot be used here"):
        pick_device("cuda")
    assert pick_device("auto").type == "cpu"


def change_weights(model, change):
    path = model / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.update({"transformer.wpe.weight": torch.zeros(8, 16)}),
            r"of another shape transformer\.wpe\.weight \(\(8, 16\) where the config says "
            r"\(16, 16\)\)",
        ),
        (lambda w: w.pop("transformer.wpe.weight"), r"missing transformer\.wpe\.weight"),
        (lambda w: w.update(foo=torch.zeros(1)), "unknown foo"),
        (
            lambda w: [w.pop(key) for key in list(w) if key.startswith("transformer.h.0.")],
            "and 8 more",
        ),
    ],
)
def test_weights_that_do_not_fit_the_config_are_listed(model, change, message, capfd):
    change_weights(model, change)
    with pytest.raises(KrakenError, match=message) as caught:
        load_causal_lm(model)
    assert "\n" not in str(caught.value)
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("keep", [-100, 100, 4, 0])
def test_truncated_weights_are_named(model, keep):
    path = model / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(KrakenError, match=r"model\.safetensors is damaged or truncated"):
        load_causal_lm(model)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not a valid JSON"),
        ("{}", "Unrecognized model"),
        ('{"model_type": "nope"}', "model type `nope`"),
        ('{"model_type": "vit"}', "Unrecognized configuration class"),
        ('{"model_type": "kraken", "sublayers": 2}', r"config\.json: unknown key 'sublayers'"),
    ],
)
def test_bad_config_is_one_line(model, config, message):
    (model / "config.json").write_text(config)
    with pytest.raises(KrakenError, match=message) as caught:
        load_causal_lm(model)
    assert "\n" not in str(caught.value)


def test_pickled_weights_are_never_read(model):
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(KrakenError, match=r"no \*\.safetensors file"):
        load_causal_lm(model)


def test_loss_that_is_not_a_number_is_an_error(made, model):
    change_weights(model, lambda w: w["transformer.ln_f.weight"].fill_(float("nan")))
    with pytest.raises(KrakenError, match=r"loss of .* is nan: its weights are damaged"):
        perplexity(model, made / "data", device="cpu")


def test_models_without_a_context_limit_need_a_window():
    unlimited = SimpleNamespace(vocab_size=VOCABULARY)
    with pytest.raises(KrakenError, match="choose --window N"):
        _check_window(None, unlimited, Path("model"))
    assert _check_window(8, unlimited, Path("model")) == 8
    with pytest.raises(KrakenError, match=r"window of 1 tokens .* choose at least 2"):
        _check_window(1, unlimited, Path("model"))
