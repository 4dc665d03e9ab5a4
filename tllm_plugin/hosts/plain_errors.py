"""Errors of ours in a host's own script: their message, without a traceback."""

from __future__ import annotations

import sys
from types import TracebackType

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.core.escaping import visible


def say_errors_plainly() -> None:
    """From here on an error of ours ends the process with its message; other errors stay as they are."""
    sys.excepthook = _say


def _say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, TLLMError):
        print(f"tllm: {visible(str(error), keep=chr(10))}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
