"""``generate`` of Transformers, whichever version, says what the naive loop says."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Cache, DynamicCache, StaticCache

import naive
from krakenlm.config import WIRINGS
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_compat import CACHE_NAMES, CausalLMOutputWithPast, cache_of
from krakenlm.integrations.hf_config import KrakenConfig

VOCAB = 29
# What this version's ``generate`` calls a cache: its outputs say the same.
OWN_WORD = next(word for word in CACHE_NAMES if word in CausalLMOutputWithPast.__dataclass_fields__)
all_wirings = pytest.mark.parametrize("wiring", WIRINGS)
all_positions = pytest.mark.parametrize("position", ["learned", "rope"])
STATIC = {"cache_implementation": "static", "disable_compile": True}
all_caches = pytest.mark.parametrize("cache", [{}, STATIC], ids=["dynamic", "static"])


def make(**options: Any) -> KrakenForCausalLM:
    """A small model with weights large enough that greedy tokens differ from prompt to prompt."""
    torch.manual_seed(0)
    fields = {
        "num_sublayers": 2,
        "hidden_size": 12,
        "num_hidden_layers": 3,
        "heads_per_sublayer": 4,
        "kv_heads_per_sublayer": 2,
        "head_dim": 4,
        "vocab_size": VOCAB,
        "max_position_embeddings": 32,
        "bias": True,
        "tie_word_embeddings": False,  # a tied head of random weights repeats its input
    }
    model = KrakenForCausalLM(KrakenConfig(**{**fields, **options})).double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                parameter.normal_(std=0.1)
            else:
                parameter.normal_(mean=1.0 if "norm" in name else 0.0, std=0.4)
    return model


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def generate(model: KrakenForCausalLM, ids: Tensor, new_tokens: int, **options: Any) -> Tensor:
    """The new tokens of Transformers' ``generate``, greedy unless asked otherwise."""
    options = {"attention_mask": torch.ones_like(ids), "do_sample": False, **options}
    found = model.generate(ids, max_new_tokens=new_tokens, pad_token_id=0, **options)
    return found[:, ids.shape[1] :]


def lengths_of_passes(model: KrakenForCausalLM) -> list[int]:
    """Filled with the tokens of each forward pass from here on."""
    seen: list[int] = []
    model.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].shape[1]))
    return seen


def padded(prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Prompts side by side, filled up on the left, and the mask that says where."""
    longest = max(map(len, prompts))
    ids = torch.zeros(len(prompts), longest, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = prompt
        mask[row, longest - len(prompt) :] = 1
    return ids, mask


# A cache in a model's own calls


@pytest.mark.parametrize("kind", [DynamicCache, StaticCache])
@pytest.mark.parametrize("chunks", [[1] * 8, [3, 1, 4]], ids=["tokens", "chunks"])
@all_positions
@all_wirings
def test_logits_with_a_cache_equal_logits_without(wiring, position, chunks, kind) -> None:
    model = make(wiring=wiring, position=position)
    ids = tokens(2, 8)
    cache: Cache
    if kind is DynamicCache:
        cache = DynamicCache(config=model.config)
    else:
        cache = StaticCache(config=model.config, max_cache_len=12)
    with torch.no_grad():
        wanted = model(ids, use_cache=False).logits
        found = [model(part, cache=cache).logits for part in ids.split(chunks, dim=1)]
    torch.testing.assert_close(torch.cat(found, dim=1), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("word", CACHE_NAMES)
def test_a_cache_is_understood_by_its_old_and_its_new_name(word) -> None:
    model = make()
    ids = tokens(2, 6)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        first = model(ids[:, :4], **{word: cache})
        second = model(ids[:, 4:], **{word: cache}).logits
        wanted = model(ids, use_cache=False).logits
    assert cache_of(first) is cache
    assert cache.get_seq_length() == 6
    torch.testing.assert_close(second, wanted[:, 4:], rtol=1e-9, atol=1e-9)


def test_two_caches_under_two_names_are_refused() -> None:
    model = make()
    one, other = (DynamicCache(config=model.config) for _ in range(2))
    with pytest.raises(ValueError, match=r"cache and past_key_values .* give one"):
        model(tokens(1, 3), cache=one, past_key_values=other)
    model(tokens(1, 3), cache=one, past_key_values=one)
    assert one.get_seq_length() == 3


def test_a_cache_is_returned_where_it_was_asked_for_and_in_evaluation_only() -> None:
    model = make()
    returned = cache_of(model(tokens(1, 3)))
    assert returned is not None and returned.get_seq_length() == 3
    assert cache_of(model(tokens(1, 3), use_cache=False)) is None
    model.train()
    model.model.gradient_checkpointing = True
    assert cache_of(model(tokens(1, 3), use_cache=True)) is None


# generate


@all_caches
@all_positions
@all_wirings
def test_greedy(wiring, position, cache) -> None:
    model = make(wiring=wiring, position=position)
    ids = tokens(4, 6)
    wanted, _ = naive.continued(model, ids, 10)
    assert len(wanted.unique()) > 4, "a constant answer tests nothing"
    seen = lengths_of_passes(model)
    assert torch.equal(generate(model, ids, 10, **cache), wanted)
    assert seen == [6] + [1] * 9


def test_a_cache_is_as_long_as_what_was_read_and_goes_on_in_the_next_turn() -> None:
    model = make()
    ids = tokens(1, 6)
    first, _ = naive.continued(model, ids, 5)
    turn = torch.cat((ids, first, tokens(1, 3, seed=2)), dim=1)
    wanted, _ = naive.continued(model, turn, 5)
    cache = DynamicCache(config=model.config)
    options = {OWN_WORD: cache}
    assert torch.equal(generate(model, ids, 5, **options), first)
    assert cache.get_seq_length() == 6 + 5 - 1  # the last token was only said
    seen = lengths_of_passes(model)
    assert torch.equal(generate(model, turn, 5, **options), wanted)
    assert seen == [4, 1, 1, 1, 1]


@all_caches
@all_wirings
def test_sampling_draws_what_the_naive_loop_draws(wiring, cache) -> None:
    model = make(wiring=wiring)
    ids = tokens(3, 4)

    def draw(logits_BV: Tensor) -> Tensor:
        chances = (logits_BV.float() / 1.5).softmax(-1)
        return torch.multinomial(chances, num_samples=1)[:, 0]

    options = {"do_sample": True, "temperature": 1.5, "top_k": 0, **cache}
    for seed in (3, 4):
        torch.manual_seed(seed)
        wanted, _ = naive.continued(model, ids, 16, draw)
        torch.manual_seed(seed)
        assert torch.equal(generate(model, ids, 16, **options), wanted)


@all_caches
@all_wirings
def test_beam_search(wiring, cache) -> None:
    model = make(wiring=wiring)
    ids = tokens(4, 5)
    wanted = [naive.best_of_beams(model, row, 8, beams=3) for row in ids.tolist()]
    greedy, _ = naive.continued(model, ids, 8)
    assert wanted != greedy.tolist(), "beams that find nothing else test nothing"
    assert generate(model, ids, 8, num_beams=3, **cache).tolist() == wanted


@all_caches
@all_positions
@all_wirings
def test_a_left_padded_batch_answers_as_each_prompt_alone(wiring, position, cache) -> None:
    model = make(wiring=wiring, position=position)
    prompts = [tokens(length, seed=length) for length in (5, 3, 1)]
    ids, mask = padded(prompts)
    found = generate(model, ids, 8, attention_mask=mask, **cache)
    assert found.tolist() == [naive.greedy(model, prompt.tolist(), 8) for prompt in prompts]


def test_beams_of_a_left_padded_batch() -> None:
    model = make(position="rope")
    prompts = [tokens(length, seed=length) for length in (5, 2)]
    ids, mask = padded(prompts)
    found = generate(model, ids, 6, attention_mask=mask, num_beams=2)
    assert found.tolist() == [naive.best_of_beams(model, p.tolist(), 6, beams=2) for p in prompts]


@pytest.mark.announces(
    "Passing `generation_config` together with generation-related arguments",
    why="Transformers' candidate generator calls its assistant so",
)
@all_positions
@all_wirings
@pytest.mark.parametrize("helper", ["prompt", "model"])
def test_assisted_generation(wiring, position, helper) -> None:
    """Guesses of a weaker model, or copied from the prompt, change how tokens are found only."""
    model = make(wiring=wiring, position=position)
    ids = tokens(1, 4).repeat(1, 3)  # something to copy from
    wanted, _ = naive.continued(model, ids, 12)
    options: dict[str, Any] = {"prompt_lookup_num_tokens": 3}
    if helper == "model":
        options = {"assistant_model": nearly(model)}
    seen = lengths_of_passes(model)
    assert torch.equal(generate(model, ids, 12, **options), wanted)
    assert max(seen[1:]) > 1, "nothing was guessed"
    if helper == "model":
        assert len(seen) < 12, "no guess was ever right"


def nearly(model: KrakenForCausalLM) -> KrakenForCausalLM:
    """A model that mostly says the same."""
    other = KrakenForCausalLM(model.config).double().eval()
    other.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    with torch.no_grad():
        other.lm_head.weight += 0.05 * torch.randn_like(other.lm_head.weight)
    return other


def test_what_generate_needs_for_itself_is_no_argument_of_the_model(tokenizer) -> None:
    """It lets its tokenizer through to the model, where most models take any keyword."""
    ours = load_tokenizer(tokenizer)
    model = make(vocab_size=len(ours))
    ids = tokens(1, 4)
    wanted = naive.greedy(model, ids[0].tolist(), 8)
    stop = ours.decode(wanted[3:4])
    options = {"tokenizer": ours, "stop_strings": [stop]}
    found = generate(model, ids, 8, **options)[0].tolist()
    assert found == wanted[: wanted.index(wanted[3]) + 1]
    beams = generate(model, ids, 8, num_beams=2, tokenizer=ours)[0].tolist()
    assert beams == naive.best_of_beams(model, ids[0].tolist(), 8, beams=2)


@all_positions
def test_a_prompt_read_in_chunks(position) -> None:
    model = make(position=position)
    ids = tokens(2, 7)
    wanted, _ = naive.continued(model, ids, 6)
    seen = lengths_of_passes(model)
    assert torch.equal(generate(model, ids, 6, prefill_chunk_size=3), wanted)
    assert max(seen) == 3


def test_guidance_away_from_the_model_without_the_prompt() -> None:
    """A second cache, which a logits processor keeps for itself."""
    model = make()
    ids = tokens(1, 5)
    prompt, wanted = ids[0].tolist(), []
    for _ in range(6):
        with torch.no_grad():
            with_it, without = (
                model(torch.tensor([seen + wanted]), use_cache=False).logits[0, -1].log_softmax(-1)
                for seen in (prompt, prompt[-1:])
            )
        wanted.append(int((3.0 * (with_it - without) + without).argmax()))
    assert wanted != naive.greedy(model, prompt, 6)
    assert generate(model, ids, 6, guidance_scale=3.0)[0].tolist() == wanted


def test_embedded_prompts() -> None:
    model = make()
    ids = tokens(2, 5)
    wanted, _ = naive.continued(model, ids, 6)
    found = model.generate(
        inputs_embeds=model.get_input_embeddings()(ids), max_new_tokens=6, do_sample=False
    )
    assert torch.equal(found, wanted)


def test_several_answers_to_one_prompt() -> None:
    model = make()
    ids = tokens(1, 5)

    def draw(logits_BV: Tensor) -> Tensor:
        return torch.multinomial(logits_BV.float().softmax(-1), num_samples=1)[:, 0]

    torch.manual_seed(6)
    wanted, _ = naive.continued(model, ids.repeat(3, 1), 8, draw)
    torch.manual_seed(6)
    found = model.generate(ids, do_sample=True, top_k=0, num_return_sequences=3, max_new_tokens=8)[
        :, 5:
    ]
    assert torch.equal(found, wanted)
    assert len({tuple(row) for row in found.tolist()}) > 1
