"""What a server that was started by ``krakenlm`` is told and how it is asked."""

import json
from collections.abc import Sequence
from pathlib import Path


def streaming_request(url: str, model: str) -> str:
    """A shell command that streams an answer from a server at ``url``."""
    body = {"model": model, "prompt": "Once upon a time", "max_tokens": 32, "stream": True}
    return (
        f"curl -N {url}/v1/completions -H 'Content-Type: application/json' -d '{json.dumps(body)}'"
    )


def values_of(flags: Sequence[str]) -> dict[str, str]:
    """Values of the flags that have one, as ``--name value`` or ``--name=value``."""
    values = {}
    for flag, following in zip(flags, [*flags, ""][1:], strict=True):
        name, equals, value = flag.partition("=")
        if name.startswith("--"):
            values[name.replace("_", "-")] = value if equals else following
    return values


def has_chat_template(model: Path) -> bool:
    """Whether the tokenizer in a model's folder knows how to write a conversation."""
    if (model / "chat_template.jinja").is_file():
        return True
    path = model / "tokenizer_config.json"
    return path.is_file() and "chat_template" in json.loads(path.read_text(encoding="utf-8"))
