"""Write the option tables of docs/commands.md from the commands themselves.

A test compares the committed tables with what this script makes.

    python scripts/command_reference.py
"""

import dataclasses
import inspect
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

from typer import Typer
from typer.models import ArgumentInfo, OptionInfo

from krakenlm.cli.main import app
from krakenlm.train.recipe import Training
from markers import markdown, rewrite

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"
_VALUES = {int: "INT", float: "FLOAT", str: "TEXT", Path: "PATH"}


def commands() -> dict[str, Callable[..., Any]]:
    """Every registered command's function by its name; a group's name stands before it."""
    found = _commands_of(app)
    for group in app.registered_groups:
        assert group.typer_instance is not None
        name = group.name or group.typer_instance.info.name
        found |= {f"{name} {c}": f for c, f in _commands_of(group.typer_instance).items()}
    return found


def _commands_of(typer_app: Typer) -> dict[str, Callable[..., Any]]:
    found = {}
    for command in typer_app.registered_commands:
        assert command.callback is not None
        found[command.name or command.callback.__name__.replace("_", "-")] = command.callback
    return found


def option_table(function: Callable[..., Any]) -> str:
    """Arguments, then options, as a table."""
    hints = get_type_hints(function, include_extras=True)
    rows: list[tuple[str, str, str, str]] = []
    for name, parameter in inspect.signature(function).parameters.items():
        annotation, *extras = get_args(hints[name])
        info = next(extra for extra in extras if isinstance(extra, ArgumentInfo | OptionInfo))
        rows.append(_row(name, annotation, info, parameter.default))
    if not rows:
        return "No options.\n"
    rows.sort(key=lambda row: row[0].startswith("`-"))  # stable: arguments come first
    return markdown(["option", "value", "default", "meaning"], rows, numbers=False)


def _row(
    name: str, annotation: Any, info: ArgumentInfo | OptionInfo, default: Any
) -> tuple[str, str, str, str]:
    flag = annotation is bool
    if isinstance(info, ArgumentInfo):
        spelled, value = info.metavar or name.upper(), ""
    else:
        dashed = "--" + name.replace("_", "-")
        both = f"{dashed} / --no-{name.replace('_', '-')}"
        # Inside Annotated, typer keeps the first spelling where a default would stand.
        first = [info.default] if isinstance(info.default, str) else []
        spelled = ", ".join([*first, *(info.param_decls or [])] or [both if flag else dashed])
        value = "" if flag else _code(info.metavar or _value(annotation))
    if default is inspect.Parameter.empty:
        shown = "required"
    elif isinstance(info.show_default, str):
        shown = info.show_default
    elif flag:
        shown = "on" if default else "off"
    else:
        shown = "" if default is None else _code(str(default))
    meaning = " ".join((info.help or "").split()).replace("|", "&#124;")
    return _code(spelled), value, shown, meaning


def _value(annotation: Any) -> str:
    """What a type is called on the command line; lists and optional values are what they hold."""
    if get_origin(annotation) in (list, UnionType):
        (annotation,) = (arg for arg in get_args(annotation) if arg is not NoneType)
    return _VALUES.get(annotation, "TEXT")


def _code(text: str) -> str:
    if "|" in text:  # would end the cell; renderers disagree on how to escape it within backticks
        return f"<code>{text.replace('|', '&#124;')}</code>"
    return f"`{text}`"


def recipe_table() -> str:
    """The keys of a recipe's ``[training]``, with what ``Training`` says about them."""
    _, _, attributes = inspect.cleandoc(Training.__doc__ or "").partition("Attributes:\n")
    meanings = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE))
    rows = []
    for field in dataclasses.fields(Training):
        required = field.default is dataclasses.MISSING
        meaning = " ".join(meanings[field.name].split()).replace("``", "`")
        default = "required" if required else _code(_toml(field.default))
        rows.append((_code(field.name), default, meaning))
    return markdown(["key", "default", "meaning"], rows, numbers=False)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


def tables() -> dict[str, Callable[[], str]]:
    """Each command's table, ``common`` for what goes with all of them, ``recipe-training``."""
    found = {name: partial(option_table, function) for name, function in commands().items()}
    assert app.registered_callback is not None
    assert app.registered_callback.callback is not None
    common = partial(option_table, app.registered_callback.callback)
    return {"common": common, "recipe-training": recipe_table, **found}


if __name__ == "__main__":
    rewrite([PAGE], tables())
