"""Write the lists of options in docs/commands.md: what ``typer ... utils docs`` says.

A test compares the committed lists with what this script makes. Typer's wording of types and usage
changes from version to version, so the page names the one that wrote it.

    python scripts/command_reference.py
"""

import dataclasses
import inspect
import json
import re
import subprocess
import sys
from collections.abc import Callable
from functools import cache, partial
from importlib.metadata import version
from pathlib import Path

from krakenlm.train.recipe import Training
from markers import markdown, rewrite

PAGE = Path(__file__).resolve().parents[1] / "docs" / "commands.md"


@cache
def sections() -> dict[str, str]:
    """What Typer writes of each command, by its words behind ``krakenlm``."""
    typer = [sys.executable, "-m", "typer", "krakenlm.cli.main", "utils", "docs"]
    written = subprocess.run(
        [*typer, "--name", "krakenlm"], stdout=subprocess.PIPE, text=True, check=True
    ).stdout
    _, *parts = re.split(r"^#+ `krakenlm ?(.*)`$", written, flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def commands() -> list[str]:
    """The commands that hold no others."""
    return [name for name, section in sections().items() if "**Commands**" not in section]


def options(command: str) -> str:
    """Usage, arguments and options; what a command is for, the page says in its own words."""
    _, usage, rest = sections()[command].partition("**Usage**")
    return f"{usage}{rest.partition('**Commands**')[0].strip()}\n"


def written_by() -> str:
    """Whose lists these are."""
    return f"The lists of arguments and options are written by Typer {version('typer')}.\n"


def without_wording(page: str) -> str:
    """A page without what differs between versions of Typer: usage, types, its own version."""
    page = re.sub(r"written by Typer .*", "", page)
    page = re.sub(r"\*\*Usage\*\*.*?\n```\n", "", page, flags=re.DOTALL)
    return re.sub(r"^\* `(.*?)`", _name_alone, page, flags=re.MULTILINE)


def _name_alone(listed: re.Match[str]) -> str:
    words = re.sub(r" <.*", "", listed[1]).split()
    flags = [word for word in words if word.startswith("-")]
    return " ".join(flags or words).lower()


def recipe_table() -> str:
    """The keys of a recipe's ``[training]``, with what ``Training`` says about them."""
    _, _, attributes = inspect.cleandoc(Training.__doc__ or "").partition("Attributes:\n")
    meanings = dict(re.findall(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", attributes, re.MULTILINE))
    rows = []
    for field in dataclasses.fields(Training):
        required = field.default is dataclasses.MISSING
        meaning = " ".join(meanings[field.name].split()).replace("``", "`")
        default = "required" if required else f"`{_toml(field.default)}`"
        rows.append((f"`{field.name}`", default, meaning))
    return markdown(["key", "default", "meaning"], rows, numbers=False)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else json.dumps(value)


def tables() -> dict[str, Callable[[], str]]:
    """Each command's list, ``common`` for what goes with all of them, ``recipe-training``."""
    lists = {name: partial(options, name) for name in commands()}
    own = {"common": partial(options, ""), "typer": written_by, "recipe-training": recipe_table}
    return {**own, **lists}


if __name__ == "__main__":
    rewrite([PAGE], tables())
