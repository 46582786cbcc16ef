"""Does a library still have, and call, what a class of ours replaces or hands over?

A method that was renamed is never called, and an argument that was renamed ends among ``**kwargs``:
both would change what happens without an error. Asked here when a class is made or an object built.
"""

import inspect
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from krakenlm.errors import KrakenError

_F = TypeVar("_F", bound=Callable[..., Any])


def replaces(base: type) -> Callable[[_F], _F]:
    """Mark a method that replaces one of ``base``, a library's class.

    Raises:
        KrakenError: ``base`` has no such method, or its arguments have other names.
    """

    def check(method: _F) -> _F:
        name = method.__name__
        theirs = getattr(base, name, None)
        if theirs is None:
            raise changed(f"{_place(base)} has no method {name}")
        for own, other in zip(_names(method), _names(theirs), strict=False):
            if own != other:
                raise changed(f"{_place(base)}.{name} calls {other!r} what was {own!r}")
        return method

    return check


def require_arguments(function: Callable[..., Any], names: Iterable[str]) -> None:
    """Refuse a function that would not know these arguments, or take them among ``**kwargs``.

    Raises:
        KrakenError: with the first such name.
    """
    known = set(_names(function))
    for name in names:
        if name not in known:
            raise changed(f"{_place(function)} has no argument {name!r}")


def require_attributes(thing: object, *names: str) -> None:
    """Refuse an object without these attributes, which assigning to them would not notice.

    Raises:
        KrakenError: with the first such name.
    """
    for name in names:
        if not hasattr(thing, name):
            raise changed(f"{_place(type(thing))} has no {name}")


def names_with_default(function: Callable[..., Any]) -> frozenset[str]:
    """The arguments that a function can do without."""
    return frozenset(
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not inspect.Parameter.empty
    )


def changed(what: str) -> KrakenError:
    """The refusal of a library that is no longer as this package knows it."""
    return KrakenError(
        f"{what}, which this krakenlm was not made for: pip install --upgrade krakenlm brings one "
        "that was, or the library's version that suits this one"
    )


_GATHERING = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def _names(function: Callable[..., Any]) -> list[str]:
    """The arguments that have a name of their own, in order."""
    parameters = inspect.signature(function).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind not in _GATHERING]


def _place(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
