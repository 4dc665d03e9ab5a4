"""Errors of ours, and of the workers that read images, in a host's own script: their message without a traceback."""

from __future__ import annotations

import sys
from types import TracebackType

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.core.escaping import visible
from tllm_plugin.core.worker_errors import plain_error


def say_errors_plainly() -> None:
    """From here on such an error ends the process with its message; other errors stay as they are."""
    sys.excepthook = _say


def _say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    plain = plain_error(error) or error
    if isinstance(plain, TLLMError):
        print(f"tllm: {visible(str(plain), keep=chr(10))}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, traceback)
