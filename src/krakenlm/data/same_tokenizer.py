"""Do two tokenizers give a text the same ids?

Files cannot be compared byte by byte: versions of the libraries write the same tokenizer
differently, and much in ``tokenizer.json`` has no part in the ids that ``prepare`` writes, such as
padding, truncation, the template of a sequence and the decoder.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from krakenlm.console import print_note
from krakenlm.data.manifest import Manifest, sha256_of
from krakenlm.data.tokenizer import load_tokenizer
from krakenlm.data.tokenizer_files import tokenizer_file
from krakenlm.errors import KrakenError

# In a part that splits text, these concern the places of tokens in it, not the tokens.
_NOT_OF_IDS = {"trim_offsets"}
# Of an added token, how a text is searched for it.
_SEARCH = ("content", "single_word", "lstrip", "rstrip", "normalized")


class _Parts(NamedTuple):
    """What decides which ids a text gets when it is encoded as text (see ``encoder_of``).

    Attributes:
        vocabulary: the id of each token, added ones included.
        merges: of BPE.
        model: what else there is to how characters become tokens, such as scores.
        normalizer: steps that change the text first.
        pre_tokenizer: steps that cut it into words.
        added_tokens: found in the text before all else; special ones never are, see ``encoder_of``.
    """

    vocabulary: Mapping[str, int]
    merges: list[Any]
    model: Mapping[str, Any]
    normalizer: list[Any]
    pre_tokenizer: list[Any]
    added_tokens: list[Any]

    @property
    def sha256(self) -> str:
        text = json.dumps(self._asdict(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def ids_sha256(engine: str) -> str:
    """The sha256 of what decides ids, from what stands in a ``tokenizer.json``.

    The tokenizers library reads it first, so that its older spellings (merges as ``"a b"``,
    settings that were left out) are the same as its newest.
    """
    return _parts(engine)[0].sha256


def check_model_tokenizer(data: Path, manifest: Manifest, model: Path, *, insist: bool) -> None:
    """Refuse prepared tokens that mean other text to the model.

    Args:
        data: a prepared directory; its copy of the tokenizer may be missing.
        manifest: of it.
        model: a model directory; without a tokenizer there is nothing to compare, as a note says.
        insist: say it in a note instead.

    Raises:
        KrakenError: the model's tokenizer is not the one that made the tokens.
    """
    file = tokenizer_file(model)
    if file is not None and sha256_of(file) == manifest.tokenizer.sha256:
        return
    try:
        theirs = _engines(model)
    except KrakenError as error:
        _note(f"whether {data} was prepared for {model} cannot be told: {error}")
        return
    found = [_difference(data, manifest, engine) for engine in theirs]
    different = "" if "" in found else found[0]
    if different is None:
        _note(
            f"whether {data} was prepared for {model} cannot be told: the tokenizer that its "
            "manifest.json describes is not there"
        )
    elif different:
        what = (
            f"{data} was prepared with another tokenizer ({_name(manifest)}) than {model} has: "
            f"{different}"
        )
        if not insist:
            raise KrakenError(
                f"{what}: prepare the text with --tokenizer {model}, or pass --other-tokenizer to "
                "use these tokens nevertheless"
            )
        _note(f"{what}: numbers mean little")


def check_own_tokenizer(data: Path, manifest: Manifest, *, insist: bool) -> None:
    """Refuse a prepared directory whose tokenizer is not the one that made its tokens.

    Args:
        data: the directory.
        manifest: of it.
        insist: say it in a note instead.

    Raises:
        KrakenError: it was exchanged, or there is none.
    """
    folder, known = data / "tokenizer", manifest.tokenizer
    file = tokenizer_file(folder)
    if file is not None and sha256_of(file) == known.sha256:
        return
    if known.ids_sha256 in map(ids_sha256, _engines(folder)):
        return
    what = f"{folder} is not the tokenizer that made the tokens of {data} ({_name(manifest)})"
    if not insist:
        raise KrakenError(
            f"{what}: put that one back, prepare the text again, or pass --other-tokenizer to give "
            "the model this one"
        )
    _note(f"{what}: the model gets it nevertheless")


def _engines(directory: Path) -> list[str]:
    """What the tokenizer of a directory does: first as it is loaded, then as its file says.

    Transformers builds some classes' normalizer and pre-tokenizer anew, whatever the file says;
    a model may have been trained with either.
    """
    engines = [load_tokenizer(directory).backend_tokenizer.to_str()]
    file = tokenizer_file(directory)
    return engines if file is None else [*engines, file.read_text(encoding="utf-8")]


def _difference(data: Path, manifest: Manifest, engine: str) -> str | None:
    """In what the tokenizer that made the tokens differs; None where that cannot be told."""
    known, (parts, special) = manifest.tokenizer, _parts(engine)
    if known.ids_sha256 == parts.sha256:
        return ""
    file = tokenizer_file(data / "tokenizer")
    if file is None or sha256_of(file) != known.sha256:
        return "not the same sha256" if known.ids_sha256 else None
    ours, our_special = _parts(file.read_text(encoding="utf-8"))
    unlike = {name for name in _Parts._fields if getattr(ours, name) != getattr(parts, name)}
    # Special tokens are not looked for in texts: the only one that is written ends documents.
    harmless = special | our_special
    if all(
        content in harmless and number != manifest.eos_id
        for content, number in ours.vocabulary.items() ^ parts.vocabulary.items()
    ):
        unlike.discard("vocabulary")
    return f"not the same {' and '.join(sorted(unlike))}".replace("_", " ") if unlike else ""


def _parts(engine: str) -> tuple[_Parts, set[str]]:
    """What decides ids, and which tokens are special."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_str(engine)
    state = json.loads(tokenizer.to_str())
    model = state["model"]
    if isinstance(model["vocab"], dict):  # a list holds scores as well
        del model["vocab"]
    added = [token for token in state["added_tokens"] if not token["special"]]
    searched = [{key: token[key] for key in _SEARCH} for token in added]
    parts = _Parts(
        vocabulary=tokenizer.get_vocab(with_added_tokens=True),
        merges=model.pop("merges", []),
        model=_meaningful(model),
        normalizer=_steps(state["normalizer"]),
        pre_tokenizer=_steps(state["pre_tokenizer"]),
        added_tokens=sorted(map(_meaningful, searched), key=lambda token: str(token["content"])),
    )
    return parts, {token["content"] for token in state["added_tokens"] if token["special"]}


def _steps(part: Any) -> list[Any]:
    """The steps of a normalizer or a pre-tokenizer, however they are nested."""
    if part is None:
        return []
    if part["type"] == "Sequence":
        inner = part.get("normalizers", part.get("pretokenizers"))
        return [step for each in inner for step in _steps(each)]
    return [_meaningful(part)]


def _meaningful(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Without what is off or empty, which is what it means to a version that does not know it."""
    return {
        key: value
        for key, value in settings.items()
        if key not in _NOT_OF_IDS and value is not None and value is not False and value != ""
    }


def _name(manifest: Manifest) -> str:
    return f"{manifest.tokenizer.source}, sha256 {manifest.tokenizer.sha256[:12]}"


def _note(text: str) -> None:
    print_note(f"note: {text}")
