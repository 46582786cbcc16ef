"""Answers on the terminal: one as its tokens come, those to a file of prompts batch by batch."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from krakenlm.console import notes, print_note, progress_bar
from krakenlm.data.chat import Chat
from krakenlm.data.prompts import Prompt
from krakenlm.engine.answer import Answer
from krakenlm.engine.generation import (
    Ranks,
    Request,
    Step,
    generate_tokens,
    prepare,
    usual_answer,
)
from krakenlm.files import whole_file
from krakenlm.ranks.launch import is_first_process

STANDARD_OUTPUT = "-"


def print_answers(
    directory: Path,
    prompts: Sequence[Prompt],
    *,
    ranks: Ranks,
    chat: Chat | None = None,
    json_file: str | None = None,
    show_stats: bool = False,
    **request_fields: Any,
) -> None:
    """Continue prompts and write them with their answers to standard output.

    Under torchrun the first process alone writes.

    Args:
        directory: a saved model with its tokenizer.
        prompts: one that comes from no file is written as its answer grows, others when their
            batch is answered, each behind a line that says where it stands.
        ranks: where.
        chat: the prompts are a user's messages, which answers do not go on with: they stand alone,
            or below the message.
        json_file: also write an object a line here; ``-`` is standard output, in place of text.
        show_stats: write times to standard error as well.
        request_fields: see ``krakenlm.engine.generation.prepare``.
    """
    names = [prompt.name for prompt in prompts]
    texts = [prompt.text for prompt in prompts]
    request, tokenizer = prepare(directory, texts, names=names, chat=chat, **request_fields)
    answers = [request.answer(tokenizer, index) for index in range(len(prompts))]
    if not is_first_process():
        generate_tokens(request, ranks, lambda _: None)
        return
    if request_fields.get("max_new_tokens") is None:
        _note_short_answers(request, names, usual_answer(chat))
    out = sys.stdout  # a progress bar puts something else in its place
    writers: list[_Writer] = []
    if json_file != STANDARD_OUTPUT:
        writers.append(_Texts(out, prompts, chat))
    heard: list[Step] = []
    with _json_lines(json_file, out) as lines, _progress(prompts, out) as advance:
        if lines is not None:
            writers.append(_JsonLines(lines, prompts, chat))

        def hear(step: Step) -> None:
            heard.append(step)
            batch = answers[step.first : step.first + len(step.tokens)]
            was_done = _are_done(batch)
            pieces = [answer.add(token) for answer, token in zip(batch, step.tokens, strict=True)]
            for writer in writers:
                writer.grow(step.first, pieces)
            if _are_done(batch) and not was_done:
                for writer in writers:
                    writer.finish(step.first, batch)
                advance(len(batch))

        generate_tokens(request, ranks, hear)
    if show_stats:
        _report(heard, answers)


def _are_done(answers: Sequence[Answer]) -> bool:
    return all(answer.finish_reason is not None for answer in answers)


class _Texts:
    """Prompts and answers as text."""

    def __init__(self, out: TextIO, prompts: Sequence[Prompt], chat: Chat | None) -> None:
        self._out = out
        self._prompts = prompts
        self._is_chat = chat is not None
        self._begun = False

    def grow(self, first: int, pieces: Sequence[str]) -> None:
        """Write a single answer's new piece."""
        prompt = self._prompts[first]
        if prompt.source:
            return
        if not self._begun and not self._is_chat:
            self._out.write(prompt.text)
        self._out.write(pieces[0])
        self._out.flush()
        self._begun = True

    def finish(self, first: int, batch: Sequence[Answer]) -> None:
        """Write a batch that is answered."""
        for index, answer in enumerate(batch, first):
            prompt = self._prompts[index]
            between = "\n\n" if self._is_chat else ""
            said = f"{prompt.text}{between}{answer.text}"
            self._out.write(f"--- {prompt.name}\n{said}\n" if prompt.source else "\n")
        self._out.flush()


class _JsonLines:
    """Prompts and answers as JSON, an object a line."""

    def __init__(self, out: TextIO, prompts: Sequence[Prompt], chat: Chat | None) -> None:
        self._out = out
        self._prompts = prompts
        self._system = None if chat is None else chat.system

    def grow(self, first: int, pieces: Sequence[str]) -> None:
        """Lines are written whole."""

    def finish(self, first: int, batch: Sequence[Answer]) -> None:
        """Write a batch that is answered."""
        for index, answer in enumerate(batch, first):
            prompt = self._prompts[index]
            entry = {
                **({"line": prompt.line} if prompt.source else {}),
                **({} if self._system is None else {"system": self._system}),
                "prompt": prompt.text,
                "answer": answer.text,
                "tokens": answer.tokens,
                "finish_reason": answer.finish_reason,
            }
            self._out.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self._out.flush()


_Writer = _Texts | _JsonLines


@contextmanager
def _json_lines(file: str | None, out: TextIO) -> Iterator[TextIO | None]:
    """Where JSON goes; a file appears whole or not at all."""
    if file is None or file == STANDARD_OUTPUT:
        yield None if file is None else out
        return
    with whole_file(Path(file)) as partial, partial.open("w", encoding="utf-8") as lines:
        yield lines


@contextmanager
def _progress(prompts: Sequence[Prompt], out: TextIO) -> Iterator[Callable[[int], None]]:
    """A bar for a file of prompts, unless the answers themselves are seen to come."""
    if not prompts[0].source or out.isatty():
        yield lambda _: None
        return
    with progress_bar() as bar:
        task = bar.add_task("answering", total=len(prompts))
        yield lambda count: bar.advance(task, count)


def _note_short_answers(request: Request, names: Sequence[str], usual: int) -> None:
    """Say it where one long prompt makes all answers short."""
    if len(names) == 1 or request.max_new_tokens >= usual:
        return
    longest = max(range(len(names)), key=lambda index: len(request.prompts[index]))
    print_note(
        f"note: answers have {request.max_new_tokens} tokens at most, which is what the context "
        f"leaves after the longest prompt ({names[longest]})"
    )


def _report(steps: Sequence[Step], answers: Sequence[Answer]) -> None:
    if len(answers) > 1:
        tokens = sum(answer.tokens for answer in answers)
        ends = {step.first: step.seconds for step in steps}  # the last step of each batch
        seconds = sum(ends.values())
        line = f"{tokens} tokens in {seconds:.1f} s, {tokens / seconds:.1f} a second"
        notes.print(f"{len(answers)} prompts: {line}")
        return
    first, last, count = steps[0], steps[-1], len(steps)
    line = f"time to first token {1000 * first.seconds:.1f} ms"
    if count > 1:
        line += f", per token after {1000 * (last.seconds - first.seconds) / (count - 1):.1f} ms"
    notes.print(f"{count} tokens: {line}")
