"""Errors that a user can act on; the command line prints only their message and maps them to exit codes."""

from __future__ import annotations

from collections.abc import Iterable

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
    "Expected `detector` to be one of none, reference, but got 'refrence'"
    """
    return f"Expected `{kind}` to be one of {', '.join(map(visible, sorted(known)))}, but got {name!r}"
