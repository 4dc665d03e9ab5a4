"""Errors that a user can act on; the command line prints only their message and maps them to exit codes."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

from tllm_plugin.core.escaping import visible


class TLLMError(Exception):
    """Base of every error that TLLM raises on purpose. Exit code 1."""


class ConfigError(TLLMError, ValueError):
    """An invalid configuration or argument. Exit code 2."""


class DataError(TLLMError):
    """Data that cannot be read or is incomplete: an empty class, a corrupt image."""


class FileFormatError(TLLMError):
    """A file that is missing, truncated, foreign, or of an unknown schema version."""


class NonFiniteLossError(TLLMError, ArithmeticError):
    """A loss became NaN or infinite; the message names step, batch rows and loss parts."""


def unknown_name(kind: str, name: object, known: Iterable[str]) -> str:
    """Return the error message for a name that is not registered.

    >>> unknown_name("detector", "refrence", ["none", "reference"])
    "Expected `detector` to be one of none, reference, but got 'refrence'; did you mean reference?"
    """
    names = sorted(known)
    listed = ", ".join(map(visible, names))
    return f"Expected `{kind}` to be one of {listed}, but got {name!r}{did_you_mean(str(name), names)}"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return a suggestion to append to an error message; empty if no known name is similar.

    >>> did_you_mean("trian", ["test", "train"])
    '; did you mean train?'
    """
    found = closest(name, known)
    return "" if found is None else f"; did you mean {visible(found)}?"


def closest(name: str, known: Iterable[str]) -> str | None:
    """Return the known name that is most similar to `name`, ignoring case; None if none is similar."""
    spelled = {item.casefold(): item for item in known}
    found = get_close_matches(name.casefold(), spelled, n=1)
    return spelled[found[0]] if found else None
