"""A chat template, run in a process of its own: one JSON object in, one out.

A template is a program that comes with a model. Jinja's sandbox keeps it from everything but its
arguments, and Transformers runs it no other way; that it runs for ever or fills the memory, only a
process can be kept from. ``krakenlm.data.chat`` starts this file by its path and reads what it
says. What a template may call is what Transformers offers it (``utils/chat_template_utils.py``).
"""

import json
import resource
import signal
import sys
from contextlib import suppress
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import TemplateError, TemplateSyntaxError
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import CallBlock, Node
from jinja2.parser import Parser
from jinja2.runtime import Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace


class RefusedError(TemplateError):
    """The template itself refuses a conversation, by ``raise_exception``."""


class _Generation(Extension):
    """``{% generation %}``, which marks for training what the model says; here it is only text."""

    tags = {"generation"}  # noqa: RUF012  # as Jinja declares it

    def parse(self, parser: Parser) -> Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return CallBlock(self.call_method("_as_it_is"), [], [], body).set_lineno(line)

    def _as_it_is(self, caller: Macro) -> str:
        return caller()


class _Namespace(Namespace):
    """Jinja's, without names that lead to Python's insides."""

    def __init__(*args: Any, **attributes: Any) -> None:  # ``self`` may be an attribute
        self, *tables = args
        values = dict(*tables, **attributes)
        for name in values:
            _refuse_inside(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_inside(name)
        super().__setitem__(name, value)


def _refuse_inside(name: object) -> None:
    if str(name).startswith("_"):
        raise SecurityError(f"a namespace has no {name!r}: names must not begin with _")


class _Dict:
    """``dict`` as a function, without what its class offers."""

    def __call__(self, *args: Any, **values: Any) -> dict[Any, Any]:
        return dict(*args, **values)

    def fromkeys(self, *args: Any) -> dict[Any, Any]:
        return dict.fromkeys(*args)


def _raise_exception(message: object) -> NoReturn:
    raise RefusedError(str(message))


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Without the escapes for HTML that Jinja's own has."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def environment() -> ImmutableSandboxedEnvironment:
    """Where templates are read and run."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    made.filters["tojson"] = _tojson
    made.globals |= {
        "raise_exception": _raise_exception,
        "strftime_now": _strftime_now,
        "dict": _Dict(),
        "namespace": _Namespace,
    }
    return made


def limit_memory(size: int) -> None:
    """Let this process have so many bytes, where the system can see to it."""
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_AS, (size, size))


def limit_time(seconds: float) -> None:
    """End this process after so much of the processor's time from now, whatever it is doing."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, seconds)


def render(asked: dict[str, Any]) -> dict[str, Any]:
    """The text of each conversation, or what is wrong and with which of them.

    Args:
        asked: ``template``, ``conversations`` as lists of messages, ``variables`` for all of
            them, and ``seconds`` of processor time for each.

    Returns:
        ``texts``; or ``error``, and ``refused``: the index of a conversation, or None.
    """
    texts: list[str] = []
    try:
        limit_time(asked["seconds"])
        template = environment().from_string(asked["template"])
        for messages in asked["conversations"]:
            limit_time(asked["seconds"])
            texts.append(
                template.render(
                    messages=messages,
                    tools=None,
                    documents=None,
                    add_generation_prompt=True,
                    **asked["variables"],
                )
            )
    except MemoryError:
        return {"error": "it needs too much memory", "refused": None}
    except Exception as error:  # a template can raise whatever it likes
        refused = len(texts) if isinstance(error, RefusedError) else None
        return {"error": _said(error), "refused": refused}
    return {"texts": texts}


def _said(error: Exception) -> str:
    if isinstance(error, TemplateSyntaxError):
        return f"line {error.lineno}: {error.message}"
    return str(error).strip().partition("\n")[0] or type(error).__name__


def main() -> None:
    """Answer what stands on standard input."""
    asked = json.load(sys.stdin)
    limit_memory(asked["bytes"])
    json.dump(render(asked), sys.stdout)


if __name__ == "__main__":
    main()
