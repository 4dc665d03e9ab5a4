"""What goes to a terminal: text is shown and never obeyed, whatever names are in it."""

from __future__ import annotations

import logging
import sys
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


class PlainFormatter(logging.Formatter):
    """Formats a log message as it may be shown."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the message."""
        return visible(super().format(record), keep="\n")


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line."""
    print(visible(text, keep="\n"), file=file)


def write_out(text: str) -> None:
    """Write a file's content to standard output: as it is, unless that is a terminal."""
    buffer = getattr(sys.stdout, "buffer", None)
    if buffer is None or sys.stdout.isatty():
        sys.stdout.write(visible(text, keep="\n"))
        return
    sys.stdout.flush()
    buffer.write(text.encode("utf-8", "surrogateescape"))
    buffer.flush()
