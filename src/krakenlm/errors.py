"""The one exception that is meant for people.

Whatever a user can cause (a missing file, a wrong number, a full disk) is raised as
``KrakenError``; the command line prints its message on one line and exits with code 2.
Broken invariants inside the library are ``assert``.
"""


class KrakenError(Exception):
    """A problem the user can fix: the message says what, where, and what to do."""


class ConfigError(KrakenError, ValueError):
    """A configuration that cannot work: names the field, its value and what would fit."""


def first_line(error: BaseException) -> str:
    """What a library's error says, on one line; its type where it says nothing."""
    return str(error).strip().partition("\n")[0] or type(error).__name__
