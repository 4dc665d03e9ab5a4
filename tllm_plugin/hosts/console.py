"""Write to the terminal and to standard output; control characters in names are shown and have no effect."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, TextIO

from rich.console import Console
from rich.logging import RichHandler
from rich.text import Text

from tllm_plugin.core.escaping import visible
from tllm_plugin.runs.atomic import write_text


class PlainConsole(Console):
    """Console that prints strings as they are: no markup, no emoji codes, and control characters are escaped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"markup": False, "emoji": False, "highlight": False, **options})

    def render_str(self, text: str, **options: Any) -> Text:
        """Render a string; rich renders all strings by this method, including cells and titles of tables."""
        return super().render_str(visible(text, keep="\n"), **options)

    def print(self, *objects: Any, **options: Any) -> None:
        """Print; see `writing_output` for the errors that are raised."""
        with nullcontext() if self.stderr else writing_output():
            super().print(*objects, **options)


class PlainFormatter(logging.Formatter):
    """Formatter that escapes control characters.

    Args:
        template: Format of a line.
        times: Format of the time.
        one_line: Whether to join the lines of a message.
    """

    def __init__(self, template: str, times: str, *, one_line: bool = False) -> None:
        super().__init__(template, times)
        self._one_line = one_line

    def format(self, record: logging.LogRecord) -> str:
        """Return the text of a record."""
        text = super().format(record)
        return visible(" ".join(text.splitlines())) if self._one_line else visible(text, keep="\n")


def start_logging(*, quiet: bool) -> None:
    """Log to standard error: in columns on a terminal, one line per message with its date elsewhere.

    Args:
        quiet: Whether to log warnings and errors only, which also hides progress bars.
    """
    console = PlainConsole(stderr=True)
    handler: logging.Handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S", one_line=True))
    if console.is_terminal:
        handler = RichHandler(console=console, show_path=False, show_level=False, markup=False)
        handler.setFormatter(PlainFormatter("%(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.WARNING if quiet else logging.INFO, handlers=[handler], force=True)


def say(text: str, file: TextIO | None = None) -> None:
    """Print a line; see `writing_output` for the errors that are raised."""
    with writing_output() if file is None else nullcontext():
        print(visible(text, keep="\n"), file=file)


def write_result(path: str, text: str) -> None:
    """Write a result to a file and print its path; `-` is standard output.

    Control characters are escaped only if standard output is a terminal; see `writing_output` for the errors that are
    raised.
    """
    if path != "-":
        write_text(path, text)
        say(f"written: {path}")
        return
    buffer = getattr(sys.stdout, "buffer", None)
    with writing_output():
        if buffer is None or sys.stdout.isatty():
            sys.stdout.write(visible(text, keep="\n"))
            return
        sys.stdout.flush()
        buffer.write(text.encode("utf-8", "surrogateescape"))
        buffer.flush()


def write_json_result(path: str, content: Any) -> None:
    """Write a result as JSON; see `write_result`."""
    write_result(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


@contextmanager
def writing_output() -> Iterator[None]:
    """Name standard output in the error if it cannot be written, and discard all later output.

    Raises:
        OSError: With the file name "standard output".
    """
    try:
        yield
    except OSError as error:
        with suppress(OSError, ValueError):  # Otherwise Python's own flush at exit would print a second error.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(error.errno, error.strerror, "standard output") from error
