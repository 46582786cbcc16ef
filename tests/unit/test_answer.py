"""Tokens as text: the pieces of an answer are its whole decode, for every kind of tokenizer."""

import random
from collections.abc import Sequence

import pytest
from transformers import PreTrainedTokenizerFast

from krakenlm.engine import answer as answer_module
from krakenlm.engine.answer import Answer, TokenText, _BeforeStop, stop_texts
from krakenlm.errors import KrakenError
from tokenizer_kinds import KINDS, SPECIAL, byte_fallback, byte_level, metaspace, read_back

REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
SEQUENCES = 50


@pytest.fixture(scope="module", params=KINDS)
def kind(request) -> PreTrainedTokenizerFast:
    return KINDS[request.param]()


def of_bytes(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Whole characters, a token a byte where the tokenizer has such."""
    spelt = [f"<0x{byte:02X}>" for byte in text.encode()]
    if tokenizer.backend_tokenizer.token_to_id(spelt[0]) is None:
        return list(tokenizer.encode(text, add_special_tokens=False))
    return [int(tokenizer.convert_tokens_to_ids(token)) for token in spelt]


def drawn(tokenizer: PreTrainedTokenizerFast, seed: int) -> list[int]:
    """Any tokens, among them special ones, whole characters, halves of some, and many blanks."""
    chance = random.Random(seed)
    ids: list[int] = []
    usual = sorted(set(tokenizer.get_vocab().values()))
    special = tokenizer.convert_tokens_to_ids(SPECIAL)
    length = chance.choice([1, 3, 12, 100])
    while len(ids) < length:
        match chance.randrange(5):
            case 0:
                ids.append(chance.choice(special))
            case 1:
                ids += of_bytes(tokenizer, chance.choice("😀🦊é€"))
            case 2:
                character = of_bytes(tokenizer, chance.choice("😀🦊é€"))
                ids += character[: chance.randint(0, len(character))]
            case _:
                ids.append(chance.choice(usual[-40:] if chance.random() < 0.7 else usual))
    return ids


def streamed(text: TokenText, ids: Sequence[int]) -> list[str]:
    return [*(text.add(token) for token in ids), text.rest()]


def decoded(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=True))


@pytest.mark.parametrize("context", [2, 16])
def test_pieces_joined_are_the_whole_decode(kind, context, monkeypatch):
    monkeypatch.setattr(answer_module, "_CONTEXT", context)
    for seed in range(SEQUENCES):
        ids = drawn(kind, seed)
        pieces = streamed(TokenText(read_back(kind)), ids)
        assert "".join(pieces) == decoded(kind, ids), ids


def test_pieces_behind_a_prompt_are_what_the_decode_of_both_adds(kind):
    for seed in range(SEQUENCES):
        prompt, ids = drawn(kind, seed), drawn(kind, seed + SEQUENCES)
        begun, whole = decoded(kind, prompt), decoded(kind, prompt + ids)
        answered = "".join(streamed(TokenText(read_back(kind), prompt), ids))
        assert whole.endswith(answered)
        if whole.startswith(begun):  # a prompt's last bytes may be no character yet
            assert begun + answered == whole


def test_a_character_is_shown_whole_or_not_at_all(kind):
    for seed in range(SEQUENCES):
        ids = [*drawn(kind, seed), *of_bytes(kind, "😀"), *of_bytes(kind, "é")]
        shown = ""
        text = TokenText(read_back(kind))
        for number, token in enumerate(ids):
            shown += text.add(token)
            assert decoded(kind, ids).startswith(shown), ids[: number + 1]


@pytest.mark.parametrize("make", [byte_level, byte_fallback])
def test_four_tokens_of_a_character_are_one_piece(make):
    tokenizer = make()
    ids = [*of_bytes(tokenizer, "é"), *of_bytes(tokenizer, "😀"), *tokenizer.encode("the")]
    pieces = streamed(TokenText(read_back(tokenizer)), ids)
    assert "".join(pieces) == "é😀the"
    assert not any(REPLACEMENT in piece for piece in pieces)


@pytest.mark.parametrize("make", [byte_fallback, metaspace])
def test_an_answer_keeps_the_blank_between_it_and_the_prompt(make):
    tokenizer = make()
    the, cat = tokenizer.convert_tokens_to_ids(["▁the", "▁cat"])
    assert decoded(tokenizer, [cat]) == "cat"
    assert streamed(TokenText(read_back(tokenizer), [the]), [cat, cat]) == [" cat", " cat", ""]
    assert streamed(TokenText(read_back(tokenizer)), [cat, cat]) == ["cat", " cat", ""]
    answer = Answer(read_back(tokenizer), [the], max_new_tokens=2)
    assert [answer.add(cat), answer.add(cat)] == [" cat", " cat"]


def test_special_tokens_within_an_answer_are_left_out():
    tokenizer = byte_level()
    start, end = tokenizer.convert_tokens_to_ids(SPECIAL)
    first, *others = of_bytes(tokenizer, "😀")
    pieces = streamed(TokenText(read_back(tokenizer), [start]), [first, start, *others, end])
    assert [piece for piece in pieces if piece] == ["😀"]


def test_long_answers_are_decoded_in_short_stretches(kind):
    """Or every token would cost as much as all before it."""
    text = TokenText(read_back(kind))
    ids = [token for seed in range(30) for token in drawn(kind, seed)]
    lengths = []
    for token in ids:
        text.add(token)
        lengths.append(len(text._ids))
    assert sorted(lengths)[len(lengths) // 2] <= 6 * answer_module._CONTEXT


# --- stop texts --------------------------------------------------------------------------------


def up_to_stop(text: str, stop: Sequence[str]) -> str:
    """Before the stop text that is complete first, found character by character."""
    for end in range(len(text) + 1):
        begins = [end - len(s) for s in stop if text[:end].endswith(s)]
        if begins:
            return text[: min(begins)]
    return text


@pytest.mark.parametrize(
    "stop", [["ab"], ["aab"], ["b", "abc"], ["aa", "aaa"], ["abab", "ba"], ["\n\n"], []]
)
def test_a_text_ends_before_the_first_stop_however_it_comes_in_pieces(stop):
    chance = random.Random(1)
    for _ in range(300):
        text = "".join(chance.choices("aabc\n", k=chance.randint(0, 12)))
        before, shown, rest = _BeforeStop(stop), "", text
        wanted = up_to_stop(text, stop)
        while rest:
            cut = chance.randint(0, len(rest))
            shown += before.add(rest[:cut])
            rest = rest[cut:]
            assert wanted.startswith(shown)  # nothing of a stop text is ever seen
        assert shown + before.rest() == wanted
        assert before.met == (wanted != text or any(s in text for s in stop))


@pytest.mark.parametrize("stop", [["t n"], ["😀"], ["."], ["e\N{LATIN SMALL LETTER E WITH ACUTE}"]])
def test_answers_end_before_a_stop_text_of_several_tokens(kind, stop):
    for seed in range(SEQUENCES):
        ids = drawn(kind, seed)
        answer = Answer(read_back(kind), [], stop=stop, max_new_tokens=len(ids))
        shown = ""
        for token in ids:
            shown += answer.add(token)
            assert answer.text == shown
        wanted = up_to_stop(decoded(kind, ids), stop)
        assert shown == wanted
        met = any(s in decoded(kind, ids) for s in stop)
        assert answer.finish_reason == ("stop" if met else "length")


def test_an_answer_ends_with_its_end_token_and_is_told_to_its_end():
    tokenizer = byte_level()
    (end,) = tokenizer.convert_tokens_to_ids(["</s>"])
    t, h = tokenizer.encode("th"[0])[0], tokenizer.encode("h")[0]
    half = of_bytes(tokenizer, "😀")[0]
    answer = Answer(read_back(tokenizer), [], eos_token_ids={end}, stop=["tree"], max_new_tokens=9)
    assert [answer.add(token) for token in (h, t, half, end, h, h)] == [
        *("h", "", "", f"t{REPLACEMENT}", "", "")
    ]
    assert (answer.text, answer.tokens, answer.finish_reason) == (f"ht{REPLACEMENT}", 4, "stop")


def test_an_answer_of_its_full_length_is_told_to_its_end():
    tokenizer = byte_level()
    t = tokenizer.encode("t")[0]
    answer = Answer(read_back(tokenizer), [], stop=["ttt"], max_new_tokens=2)
    assert [answer.add(t), answer.add(t), answer.add(t)] == ["", "tt", ""]
    assert (answer.tokens, answer.finish_reason) == (2, "length")


def test_stop_texts_are_one_or_several_and_not_empty():
    assert stop_texts("abc") == ("abc",)
    assert stop_texts(["a", "b"]) == ("a", "b")
    with pytest.raises(KrakenError, match="--stop ''"):
        stop_texts(["a", ""])
