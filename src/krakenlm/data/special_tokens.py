"""Which special tokens do the files beside a ``tokenizer.json`` name?

Transformers 5 (``_from_pretrained`` and ``TokenizersBackend.__init__``) takes them from
``tokenizer_config.json``, from ``special_tokens_map.json`` and ``added_tokens.json`` where that
lists no added tokens, and from the padding of ``tokenizer.json``. This is the same, in its order,
since new tokens get the next ids.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from krakenlm.strict import read_json

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

    _Special: TypeAlias = "str | AddedToken"

Settings: TypeAlias = Mapping[str, Any]

_NAMED = (
    *("bos_token", "eos_token", "unk_token", "sep_token"),
    *("pad_token", "cls_token", "mask_token"),
)
_EXTRA = "extra_special_tokens"
_OF_THE_MODEL = "model_specific_special_tokens"


def read_table(path: Path) -> dict[str, Any]:
    """An object that a JSON file of a tokenizer holds; empty where there is no file.

    Raises:
        KrakenError: the file is damaged.
        TypeError: it holds something else.
    """
    try:
        values = read_json(path, "copy it again")
    except FileNotFoundError:
        return {}
    if not isinstance(values, dict):
        raise TypeError(f"{path.name} is no table of keys and values")
    return values


def add_special_tokens(engine: "Tokenizer", folder: Path, settings: Settings) -> dict[str, str]:
    """Add to an engine what is not special yet, and say what the named ones are.

    Args:
        engine: of the folder's ``tokenizer.json``; it is changed.
        folder: with the other files.
        settings: what stands in ``tokenizer_config.json``.

    Returns:
        ``bos_token``, ``eos_token`` and the like, as far as there are any.

    Raises:
        TypeError, ValueError: a token that is none.
    """
    values, numbered = _with_older_files(folder, _renamed(settings))
    values = {key: _tokens_in(value) for key, value in values.items()}
    if engine.padding is not None:
        values.setdefault("pad_token", engine.padding["pad_token"])
    named = _named(values)
    add_tokens(engine, list(named.values()), _extra(values), numbered)
    return {name: _content(token) for name, token in named.items()}


def add_tokens(
    engine: "Tokenizer",
    named: "Sequence[_Special]",
    extra: "Sequence[_Special]" = (),
    numbered: "Mapping[int, AddedToken] | None" = None,
) -> None:
    """Add those of these tokens that an engine does not have.

    Args:
        engine: to be changed.
        named: the beginning of a text, its end and the like; all of them special.
        extra: others; a text without properties is special too.
        numbered: others with the properties they should have, in the order of their numbers.
    """
    from tokenizers import AddedToken

    there = list(engine.get_added_tokens_decoder().values())
    spelt = {repr(token) for token in there}  # which says all there is to one
    listed = [token for _, token in sorted((numbered or {}).items())]
    missing: list[_Special] = [token for token in listed if repr(token) not in spelt]
    known = {_content(token) for token in [*there, *missing]}
    for token in [*named, *extra]:
        if _content(token) not in known and token not in missing:
            missing.append(token)
    special = {_content(token) for token in named}
    added = [AddedToken(each, special=True) if isinstance(each, str) else each for each in missing]
    for each in added:
        each.special = each.special or each.content in special
    if added:
        engine.add_tokens(added)


def _renamed(settings: Settings) -> dict[str, Any]:
    """Under the names of Transformers 5."""
    values = dict(settings)
    if "additional_special_tokens" in values and not values.get(_EXTRA):
        values[_EXTRA] = values.pop("additional_special_tokens")
    own = {key: values.pop(key) for key in list(values) if _is_own(key, values[key])}
    if isinstance(values.get(_EXTRA), dict):
        own.update(values.pop(_EXTRA))
    return {**values, _OF_THE_MODEL: own} if own else values


def _is_own(key: str, value: Any) -> bool:
    """Whether this names a token that only some models have, such as ``image_token``."""
    return key.endswith("_token") and key not in _NAMED and isinstance(value, str)


def _with_older_files(
    folder: Path, values: dict[str, Any]
) -> "tuple[dict[str, Any], dict[int, AddedToken]]":
    """The settings, and added tokens by their numbers."""
    from tokenizers import AddedToken

    if "added_tokens_decoder" in values:
        listed = values.pop("added_tokens_decoder")
        return values, {int(number): AddedToken(**token) for number, token in listed.items()}
    for key, value in read_table(folder / "special_tokens_map.json").items():
        if key == _EXTRA and isinstance(value, list):
            more = [_special(each) for each in value]
            known = list(values.get(_EXTRA) or [])
            value = known + [each for each in more if each not in known]
        elif key != _EXTRA:
            value = _special(value)
        values[key] = value
    if isinstance(values.get(_EXTRA), dict):
        values[_OF_THE_MODEL] = {**values.get(_OF_THE_MODEL, {}), **values.pop(_EXTRA)}
    special = {str(values[key]) for key in _NAMED if values.get(key)}
    special.update(map(str, values.get(_EXTRA) or []))
    numbered = {
        number: AddedToken(content, normalized=content not in special, special=content in special)
        for content, number in read_table(folder / "added_tokens.json").items()
    }
    return values, numbered


def _special(value: Any) -> Any:
    """A token that is spelt out with its properties as such; anything else as it is."""
    from tokenizers import AddedToken

    return AddedToken(**{**value, "special": True}) if isinstance(value, dict) else value


def _tokens_in(value: Any) -> Any:
    """The same with tokens for what Transformers has written in their place, at any depth."""
    from tokenizers import AddedToken

    if isinstance(value, dict) and value.get("__type") == "AddedToken":
        return AddedToken(**{key: each for key, each in value.items() if key != "__type"})
    if isinstance(value, dict):
        return {key: _tokens_in(each) for key, each in value.items()}
    return [_tokens_in(each) for each in value] if isinstance(value, list) else value


def _named(values: dict[str, Any]) -> "dict[str, _Special]":
    from tokenizers import AddedToken

    of_the_model = {
        key: value
        for key, value in values.items()
        if key.endswith("_token") and key not in _NAMED and isinstance(value, str | AddedToken)
    }
    named = {name: values[name] for name in _NAMED if values.get(name) is not None}
    named |= {**of_the_model, **values.get(_OF_THE_MODEL, {})}
    return named


def _extra(values: dict[str, Any]) -> "list[_Special]":
    extra = values.get(_EXTRA)
    if extra is None:
        extra = values.get("additional_special_tokens") or []  # of special_tokens_map.json
    if not isinstance(extra, list):
        raise TypeError(f"{_EXTRA} is {extra!r}, which is no list of tokens")
    return extra


def _content(token: "_Special") -> str:
    from tokenizers import AddedToken

    if not isinstance(token, str | AddedToken):
        raise TypeError(f"{token!r} is no token")
    return token if isinstance(token, str) else token.content
