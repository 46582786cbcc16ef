"""Tokens of an answer as text, piece by piece; joined, the pieces are the whole decode.

``DecodeStream`` of ``tokenizers`` and the streamers of Transformers decode each word or character
for itself. Where bytes that are no character come, where spaces are cleaned up, and behind skipped
tokens they lose text or give other text than a whole decode, so neither is used.
"""

import re
from collections.abc import Collection, Sequence
from typing import Literal

from krakenlm.data.folder_tokenizer import FolderTokenizer
from krakenlm.errors import RequestError

FinishReason = Literal["stop", "length"]

_CONTEXT = 16
"""Tokens before the new ones that are decoded again, so that these come out as in the middle."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# The end of a text that Transformers' ``clean_up_tokenization`` may still take spaces from when
# more comes: it joins " n't", " 've", " ' ", " ." and the like to what stands before them.
_MAY_LOSE_SPACES = re.compile(r"( +n? *'? *[vr]?|'+ *)\Z")


class TokenText:
    """Text of tokens that come one by one, as far as no later token can change it.

    Args:
        tokenizer: with any decoder.
        before: the tokens that these follow, a prompt's.
    """

    def __init__(self, tokenizer: FolderTokenizer, before: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        # Behind bytes spelt as tokens it makes every one of them a replacement character.
        self._broken_byte: int | None = tokenizer.token_to_id("<0xFF>")
        self._cleans_up = tokenizer.cleans_up
        self._ids = list(before)
        self._told = self._decoded(self._ids)
        self._forget(self._told)

    def add(self, token: int) -> str:
        """The piece of text that a token settles; often empty, never taken back."""
        self._ids.append(token)
        text = self._decoded(self._ids)
        piece = self._tell(self._settled(text))
        if len(self._ids) > 4 * _CONTEXT:
            self._forget(text)
        return piece

    def rest(self) -> str:
        """What was held back, when no more tokens come."""
        return self._tell(self._decoded(self._ids))

    def _tell(self, text: str) -> str:
        # A prompt's end may yet change, as a space before a full stop; nothing else does.
        start = len(_common(text, self._told))
        if start < len(text):
            self._told = text
        return text[start:]

    def _settled(self, text: str) -> str:
        """The beginning of the ids' text that is the same whatever follows."""
        if self._broken_byte is not None:
            text = _common(text, self._decoded([*self._ids, self._broken_byte]))
        text = text.rstrip(_REPLACEMENT)
        return _MAY_LOSE_SPACES.sub("", text) if self._cleans_up else text

    def _forget(self, text: str) -> None:
        """Leave out the tokens that the text of later ones does not depend on."""
        if self._told != text or self._settled(text) != text:
            return
        context = self._ids[-_CONTEXT:]
        told = self._decoded(context)
        if told:  # otherwise the next token would come out as the first of a text
            self._ids, self._told = context, told

    def _decoded(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids)


def _common(one: str, other: str) -> str:
    """What both begin with."""
    for length, (mine, others) in enumerate(zip(one, other, strict=False)):
        if mine != others:
            return one[:length]
    return min(one, other, key=len)


class _BeforeStop:
    """Passes text on up to a stop text, and nothing that may be the beginning of one."""

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""
        self.met = False

    def add(self, piece: str) -> str:
        """What may be shown now."""
        if self.met:
            return ""
        text = self._held + piece
        # Of several the one that is complete first, however many characters come at once.
        ends = [(text.find(stop) + len(stop), -len(stop)) for stop in self._stop if stop in text]
        if ends:
            self.met = True
            end, minus_length = min(ends)
            return text[: end + minus_length]
        begun = max(map(len, self._stop), default=1) - 1
        held = next(n for n in range(min(begun, len(text)), -1, -1) if self._may_begin(text, n))
        self._held = text[len(text) - held :]
        return text[: len(text) - held]

    def rest(self) -> str:
        """What was held back, when no more text comes."""
        return "" if self.met else self._held

    def _may_begin(self, text: str, count: int) -> bool:
        """Whether the last ``count`` characters begin a stop text."""
        return not count or any(stop.startswith(text[-count:]) for stop in self._stop)


class Answer:
    """One answer as its tokens come: ended by an end token, a stop text or its length.

    Args:
        tokenizer: turns tokens into text.
        prompt: its tokens.
        eos_token_ids: end the answer, and are no part of it.
        stop: texts that end the answer, and are no part of it either.
        max_new_tokens: at most so many tokens.
    """

    def __init__(
        self,
        tokenizer: FolderTokenizer,
        prompt: Sequence[int],
        *,
        eos_token_ids: Collection[int] = (),
        stop: Sequence[str] = (),
        max_new_tokens: int,
    ) -> None:
        self.text = ""
        self.tokens = 0
        self.finish_reason: FinishReason | None = None
        self._eos_token_ids = eos_token_ids
        self._max_new_tokens = max_new_tokens
        self._decoded = TokenText(tokenizer, prompt)
        self._shown = _BeforeStop(stop)

    def add(self, token: int) -> str:
        """The new piece of the answer; all that is left of it with the token that ends it."""
        if self.finish_reason is not None:
            return ""
        self.tokens += 1
        if token in self._eos_token_ids:
            self.finish_reason = "stop"
            piece = self._rest()
        else:
            piece = self._shown.add(self._decoded.add(token))
            if not self._shown.met and self.tokens == self._max_new_tokens:
                self.finish_reason = "length"
                piece += self._rest()
        if self._shown.met:
            self.finish_reason = "stop"
        self.text += piece
        return piece

    def _rest(self) -> str:
        return self._shown.add(self._decoded.rest()) + self._shown.rest()


def stop_texts(stop: str | Sequence[str]) -> tuple[str, ...]:
    """One text or several, checked.

    Raises:
        RequestError: an empty one.
    """
    texts = (stop,) if isinstance(stop, str) else tuple(stop)
    if "" in texts:
        raise RequestError("--stop '': a stop text needs at least one character")
    return texts
