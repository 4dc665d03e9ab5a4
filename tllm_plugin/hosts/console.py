"""What goes to a terminal: text is shown and never obeyed, whatever names are in it."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from tllm_plugin.core.escaping import visible


class PlainConsole(Console):
    """A console for text that holds names: neither markup nor emoji codes nor control characters have an effect."""

    def __init__(self, **how: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **how})

    def render_str(self, text: str, **how: Any) -> Text:
        """Return the text that a string is shown as; all strings come through here, cells and titles included."""
        return super().render_str(visible(text, keep="\n"), **how)

    def print(self, *objects: Any, **how: Any) -> None:
        """Print; see `writing_output` for what is raised."""
        with nullcontext() if self.stderr else writing_output():
            super().print(*objects, **how)


class PlainFormatter(logging.Formatter):
    """Formats a log message as it may be shown."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message."""
        return visible(super().format(record), keep="\n")


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line; see `writing_output` for what is raised."""
    with writing_output() if file is None else nullcontext():
        print(visible(text, keep="\n"), file=file)


def write_out(text: str) -> None:
    """Write a file's content to standard output: as it is, unless that is a terminal; see `writing_output`."""
    buffer = getattr(sys.stdout, "buffer", None)
    with writing_output():
        if buffer is None or sys.stdout.isatty():
            sys.stdout.write(visible(text, keep="\n"))
            return
        sys.stdout.flush()
        buffer.write(text.encode("utf-8", "surrogateescape"))
        buffer.flush()


@contextmanager
def writing_output() -> Iterator[None]:
    """Name standard output in what the system says when it refuses to write there; nothing is written from then on.

    Raises:
        OSError: With the name "standard output".
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError, ValueError):  # So that Python does not complain once more when it ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error
