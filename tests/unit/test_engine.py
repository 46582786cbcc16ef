"""The engine on one device, against Hugging Face's class over the same modules, without a cache."""

import math

import pytest
import torch

import naive
import tiny
from krakenlm.config import rewired
from krakenlm.engine import session as session_module
from krakenlm.engine.engine import Engine
from krakenlm.engine.options import EngineOptions
from krakenlm.engine.sampling import Sampling
from krakenlm.errors import KrakenError, RequestError
from krakenlm.integrations.hf import KrakenForCausalLM
from krakenlm.integrations.hf_config import KrakenConfig
from krakenlm.ranks.launch import Rank

ALONE = Rank(0, 1, torch.device("cpu"), lambda message: None)
CONTEXT = 48
every_function = pytest.mark.parametrize("function", tiny.FUNCTIONS.values(), ids=tiny.FUNCTIONS)
MODELS = tiny.FUNCTIONS | tiny.FAMILIES | tiny.ADAPTED
every_model = pytest.mark.parametrize("function", MODELS.values(), ids=MODELS)
# A wiring with the same weights.
WRITTEN_AS = {
    **dict.fromkeys(("standard", "ladder", "shared", "lagged"), "standard"),
    **dict.fromkeys(("parallel", "lagged-layer"), "parallel"),
    **{name: name for name in ("kraken", "kraken-shared")},
}
# A bucket of the cache is 128 positions. With one of 8 short answers cross several.
SMALL_BUCKET = 8


def saved(directory, **changes) -> KrakenForCausalLM:
    torch.manual_seed(1)
    fields = {
        "num_sublayers": 2, "hidden_size": 24, "num_hidden_layers": 3, "heads_per_sublayer": 4,
        "kv_heads_per_sublayer": 2, "vocab_size": 61, "max_position_embeddings": CONTEXT,
        "bias": True,
    } | changes  # fmt: skip
    model = KrakenForCausalLM(KrakenConfig(**fields)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(directory)
    return model


def loaded(directory, dtype=torch.float32, **options) -> Engine:
    return Engine.load(directory, ALONE, dtype, EngineOptions(**options))


def random_prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(61, (length,), generator=generator).tolist() for length in lengths]


def answers(engine: Engine, prompts, count: int, **arguments) -> list[list[int]]:
    """What ``generate`` yields step by step, as one row a prompt."""
    steps = list(engine.generate(prompts, max_new_tokens=count, **arguments))
    return [list(row) for row in zip(*steps, strict=True)]


def last_logits(engine: Engine, sequences: list[list[int]]) -> torch.Tensor:
    """By the plain path, one sequence at a time."""
    return torch.stack([engine.logits(torch.tensor([s]))[0, -1] for s in sequences])


@every_model
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_greedy_tokens_of_unequal_prompts_are_those_of_each_alone_without_a_cache(
    function, position, tmp_path
):
    model = saved(tmp_path, **function, position=position)
    engine = loaded(tmp_path)
    prompts = random_prompts(9, 1, 14, 9, 2)
    assert answers(engine, prompts, 20) == [naive.greedy(model, prompt, 20) for prompt in prompts]


@every_model
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_logits_equal_hugging_faces(function, position, tmp_path):
    model = saved(tmp_path, **function, position=position)
    ids = torch.tensor(random_prompts(9, 9))
    with torch.no_grad():
        wanted = model(ids).logits
    torch.testing.assert_close(loaded(tmp_path).logits(ids), wanted, atol=1e-5, rtol=0)


@every_model
@pytest.mark.parametrize("chunks", [1, 2, 3, 5, 50])
@pytest.mark.parametrize("lengths", [(12, 5, 1), (11, 11), (1,)], ids=str)
def test_a_prompt_in_any_number_of_chunks_has_the_logits_of_the_plain_path(
    function, chunks, lengths, tmp_path
):
    saved(tmp_path, **function, position="rope")
    engine = loaded(tmp_path, torch.float64, prefill_chunks=chunks)
    prompts = random_prompts(*lengths)
    with engine.session(prompts, 1) as session:
        found = session.prefill()
    torch.testing.assert_close(found, last_logits(engine, prompts), atol=1e-9, rtol=0)


@every_model
@pytest.mark.parametrize("position", ["learned", "rope"])
def test_each_decode_step_has_the_logits_of_the_grown_sequence(
    function, position, tmp_path, monkeypatch
):
    monkeypatch.setattr(session_module, "BUCKET", SMALL_BUCKET)
    monkeypatch.setattr(session_module, "_COPYING", 0)
    saved(tmp_path, **function, position=position)
    engine = loaded(tmp_path, torch.float64)
    sequences = random_prompts(6, 13, 1)
    with engine.session(sequences, 20) as session:
        session.prefill()
        for step in range(19):
            new = [(7 * step + row) % 61 for row in range(3)]
            sequences = [[*s, token] for s, token in zip(sequences, new, strict=True)]
            found = session.decode(torch.tensor(new))
            wanted = last_logits(engine, sequences)
            torch.testing.assert_close(found, wanted, atol=1e-9, rtol=0)


@every_model
def test_captured_decode_passes_change_no_bit(function, tmp_path, monkeypatch):
    monkeypatch.setattr(session_module, "BUCKET", SMALL_BUCKET)
    monkeypatch.setattr(session_module, "_COPYING", 0)
    saved(tmp_path, **function, position="rope")
    logits = []
    for capture in (True, False):
        engine = loaded(tmp_path, capture=capture)
        with engine.session(random_prompts(3, 10), 25) as session:
            session.prefill()
            steps = [session.decode(torch.tensor([i, 2 * i])).clone() for i in range(24)]
        logits.append(torch.stack(steps))
    assert torch.equal(*logits)


@every_function
def test_the_same_weights_are_read_as_any_wiring_that_has_them(function, tmp_path):
    fields = {"num_sublayers": 4, "heads_per_sublayer": 1, "kv_heads_per_sublayer": 1}
    stored = saved(tmp_path, **fields, wiring=WRITTEN_AS[function["wiring"]])
    config = rewired(
        stored.config.to_model_config(),
        function["wiring"],
        4,
        message_parts=function.get("message_parts"),
        late_layers=function.get("late_layers"),
    )
    model = KrakenForCausalLM(KrakenConfig.from_model_config(config)).eval()
    model.load_state_dict(stored.state_dict())
    engine = Engine.load(tmp_path, ALONE, torch.float32, config=config)
    prompts = random_prompts(9, 2)
    assert answers(engine, prompts, 8) == [naive.greedy(model, prompt, 8) for prompt in prompts]


def test_answers_are_the_same_whatever_the_size_of_a_bucket(tmp_path, monkeypatch):
    model = saved(tmp_path)
    prompts = random_prompts(7, 8, 9)
    wanted = [naive.greedy(model, prompt, 30) for prompt in prompts]
    for bucket in (1, SMALL_BUCKET, 128):
        monkeypatch.setattr(session_module, "BUCKET", bucket)
        for copying in (0, 3, 1000):  # how early all of the cache is looked at
            monkeypatch.setattr(session_module, "_COPYING", copying)
            assert answers(loaded(tmp_path), prompts, 30) == wanted, (bucket, copying)


@every_function
def test_a_session_used_again_gives_what_a_new_one_gives(function, tmp_path):
    saved(tmp_path, **function)
    first, second = [random_prompts(20, 30), random_prompts(2, 5)]
    engine = loaded(tmp_path)
    with engine.session(first, 18) as session:
        session.prefill()
        session.decode(torch.tensor([1, 2]))
    with engine.session(second, 18) as again:
        assert again is session
        found = [again.prefill(), again.decode(torch.tensor([3, 4])).clone()]
    with loaded(tmp_path).session(second, 18) as new:
        wanted = [new.prefill(), new.decode(torch.tensor([3, 4])).clone()]
    assert torch.equal(torch.stack(found), torch.stack(wanted))


def test_batches_of_other_sizes_in_turn_do_not_meet(tmp_path):
    model = saved(tmp_path)
    engine = loaded(tmp_path)
    for lengths in [(20, 3), (5,), (1, 2), (5,), (7, 30, 1)]:
        prompts = random_prompts(*lengths)
        assert answers(engine, prompts, 8) == [naive.greedy(model, prompt, 8) for prompt in prompts]


def test_two_answers_under_way_at_once_do_not_meet(tmp_path):
    model = saved(tmp_path)
    engine = loaded(tmp_path)
    one, other = random_prompts(6, 9)
    both = [engine.generate([prompt], max_new_tokens=10) for prompt in (one, other)]
    steps = list(zip(*both, strict=True))
    assert [step[0][0] for step in steps] == naive.greedy(model, one, 10)
    assert [step[1][0] for step in steps] == naive.greedy(model, other, 10)


def test_an_answer_given_up_leaves_the_engine_usable(tmp_path):
    model = saved(tmp_path)
    engine = loaded(tmp_path)
    prompts = random_prompts(9, 4)
    under_way = engine.generate(prompts, max_new_tokens=20)
    next(under_way)
    next(under_way)
    under_way.close()
    assert answers(engine, prompts, 20) == [naive.greedy(model, prompt, 20) for prompt in prompts]


def test_sequences_stop_at_their_end_token(tmp_path):
    saved(tmp_path)
    engine = loaded(tmp_path)
    prompts = random_prompts(5, 3)
    free = answers(engine, prompts, 12)
    end = free[0][3]
    stopped = answers(engine, prompts, 12, eos_token_ids={end})
    cut = [row[: row.index(end) + 1] if end in row else row for row in free]
    longest = max(map(len, cut))
    assert stopped == [row + [end] * (longest - len(row)) for row in cut]


def test_seed_repeats_an_answer(tmp_path):
    saved(tmp_path)
    engine = loaded(tmp_path)

    def answer(seed):
        sampling = Sampling(temperature=1.5, top_k=20, top_p=0.9, seed=seed)
        return answers(engine, [[1, 2, 3], [4]], 15, sampling=sampling)

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


@pytest.mark.parametrize(
    ("prompts", "new", "message"),
    [
        ([], 1, "there is no prompt"),
        ([[1], []], 1, "prompt is empty"),
        ([[1], [1] * 40], 10, "40 tokens and 10 new ones.*holds 48"),
        ([[1, 61]], 1, "token 61 is outside.*61"),
        ([[-1]], 1, "token -1 is outside"),
        ([[1.0]], 1, "the prompt holds 1.0: a token is a whole number"),
        ([["1"]], 1, "the prompt holds '1': a token is"),
        ([[True]], 1, "the prompt holds True: a token is"),
        ([[1]], 0, "--max-new-tokens 0"),
        ([[1]], -3, "--max-new-tokens -3"),
        ([[1]], 1_000_000, "1 tokens and 1000000 new ones.*holds 48"),
    ],
)
def test_requests_that_cannot_be_answered_are_refused_and_the_next_is_answered(
    prompts, new, message, tmp_path
):
    saved(tmp_path)
    engine = loaded(tmp_path)
    before = answers(engine, [[60], [1, 2]], 3)
    with pytest.raises(RequestError, match=message) as refused:
        answers(engine, prompts, new)
    assert isinstance(refused.value, ValueError)
    assert answers(engine, [[60], [1, 2]], 3) == before


@pytest.mark.parametrize(
    "values",
    [
        *({"temperature": value} for value in (-1.0, math.nan, math.inf)),
        *({"top_p": value} for value in (0.0, -0.1, 1.1, math.nan)),
        {"top_k": -1},
        *({"seed": value} for value in (-1, 1 << 63)),
    ],
    ids=str,
)
def test_ways_to_choose_tokens_that_there_are_not(values):
    ((name, _),) = values.items()
    with pytest.raises(RequestError, match=f"--{name.replace('_', '-')} .*: needs "):
        Sampling(**values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefill_chunks": 0}, "--prefill-chunks 0: needs 1 or more"),
        ({"transport": "pigeon"}, "--transport pigeon: choose one of auto, shared-memory"),
        ({"placement": (3, 1)}, "--placement 3,1"),
        ({"tensor_parallel": 2}, "--devices 1 is not a multiple of --tensor-parallel 2"),
    ],
)
def test_options_that_fit_nothing_are_refused(options, message, tmp_path):
    saved(tmp_path)
    with pytest.raises(KrakenError, match=message):
        loaded(tmp_path, **options)


def test_the_last_token_needs_no_position(tmp_path):
    saved(tmp_path)
    assert len(answers(loaded(tmp_path), [[1] * 40], 9)[0]) == 9
    assert len(answers(loaded(tmp_path), [[1] * CONTEXT, [2]], 1)[0]) == 1


def test_weights_that_are_not_numbers_are_noticed(tmp_path):
    saved(tmp_path)
    engine = loaded(tmp_path)
    engine.decoder.norm.weight.data.fill_(float("nan"))
    with pytest.raises(KrakenError, match="logits are not finite"):
        next(engine.generate([[1, 1, 1]], max_new_tokens=2))
