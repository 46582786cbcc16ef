"""How does a user's message become the prompt that a model was trained on?

By the chat template of its tokenizer: a program in Jinja that writes messages with the marks of
the turns between them. ``krakenlm.data.template_process`` runs it.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from krakenlm.data.folder_tokenizer import FolderTokenizer
from krakenlm.data.special_tokens import read_table
from krakenlm.data.tokenizer_files import cannot_load, find_tokenizer
from krakenlm.errors import KrakenError
from krakenlm.utf8 import read_utf8

SECONDS = 2.0
"""Of processor time, for one conversation; templates need thousandths."""
BYTES = 1 << 30
"""Of memory, for the process that runs a template."""

_IN_ITS_FILE = "chat_template.jinja"
_IN_THE_SETTINGS = "tokenizer_config.json"
# Started by its path: to import it would load Jinja here as well.
_PROCESS = Path(__file__).with_name("template_process.py")


class Chat(NamedTuple):
    """What prompts are, where they are a user's messages.

    Attributes:
        system: what the model is told before the message; None leaves that to its template.
    """

    system: str | None = None

    def messages(self, text: str) -> list[dict[str, str]]:
        """A user's message as a conversation, in the form that templates read."""
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*before, {"role": "user", "content": text}]


class ChatTemplate(NamedTuple):
    """A model's template.

    Attributes:
        source: in Jinja.
        file: that it stands in.
    """

    source: str
    file: Path


def chat_if(wanted: bool, system: str | None) -> Chat | None:
    """What ``--chat`` and ``--system`` ask for.

    Raises:
        KrakenError: the second without the first.
    """
    if system is not None and not wanted:
        raise KrakenError("--system: only a chat has a system message: add --chat")
    return Chat(system) if wanted else None


def read_chat_template(directory: Path) -> ChatTemplate:
    """The chat template beside a model's tokenizer, found where Transformers finds it.

    Raises:
        KrakenError: there is none, or it cannot be read.
    """
    folder, _ = find_tokenizer(directory)
    file, settings = folder / _IN_ITS_FILE, folder / _IN_THE_SETTINGS
    try:
        if file.is_file():
            return ChatTemplate(read_utf8(file), file)
        source = _default_of(read_table(settings).get("chat_template"), settings)
    except (OSError, TypeError) as error:
        raise cannot_load(folder, error) from error
    if source is None:
        raise KrakenError(
            f"{folder} has no chat template, neither in {_IN_ITS_FILE} nor in {_IN_THE_SETTINGS}: "
            "leave out --chat, or copy the template of the model that this one was made from"
        )
    return ChatTemplate(source, settings)


def chat_prompts(
    directory: Path,
    tokenizer: FolderTokenizer,
    texts: Sequence[str],
    chat: Chat,
    names: Sequence[str] = (),
) -> list[str]:
    """Users' messages as prompts that ask for the model's answer, special tokens spelt out.

    Args:
        directory: of the model.
        tokenizer: its own; templates name its special tokens.
        texts: the messages.
        chat: what else there is to each conversation.
        names: what to call the messages in a refusal.

    Raises:
        KrakenError: there is no template; or it is damaged, refuses a conversation, or needs more
            than ``SECONDS`` or ``BYTES``.
    """
    template = read_chat_template(directory)
    found = _run(
        template,
        {
            "template": template.source,
            "conversations": [chat.messages(text) for text in texts],
            "variables": dict(tokenizer.special_tokens),
            "seconds": SECONDS,
            "bytes": BYTES,
        },
    )
    if "texts" in found:
        prompts: list[str] = found["texts"]
        return prompts
    if (refused := found["refused"]) is not None:
        name = names[refused] if names else "the prompt"
        advice = "--chat" if chat.system is None else "--system or --chat"
        raise KrakenError(
            f"the chat template in {template.file} refuses {name}: {found['error']}: leave out "
            f"{advice}"
        )
    raise _failed(template, found["error"])


def _default_of(value: Any, settings: Path) -> str | None:
    """The template that the settings hold, alone or among others with names."""
    if isinstance(value, list):
        named = {each.get("name"): each.get("template") for each in value if isinstance(each, dict)}
        if "default" not in named:
            raise KrakenError(
                f"{settings} has several chat templates, and none of them is named default: write "
                f"the one to use to {settings.with_name(_IN_ITS_FILE)}"
            )
        value = named["default"]
    if value is not None and not isinstance(value, str):
        raise TypeError(f"chat_template is {value!r}, which is no text")
    return value


def _run(template: ChatTemplate, asked: dict[str, Any]) -> dict[str, Any]:
    """What the process of a template says."""
    ran = subprocess.run(
        [sys.executable, "-P", str(_PROCESS)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=False,
    )
    if ran.returncode == 0:
        found: dict[str, Any] = json.loads(ran.stdout)
        return found
    if ran.returncode == -signal.SIGPROF:
        raise _failed(template, f"no end after {SECONDS:g} seconds")
    last = ran.stderr.strip().splitlines()[-1:]
    raise _failed(template, *(last or [f"its process ended with {ran.returncode}"]))


def _failed(template: ChatTemplate, why: str) -> KrakenError:
    return KrakenError(
        f"the chat template in {template.file} fails ({why}): copy it again, or leave out --chat"
    )
