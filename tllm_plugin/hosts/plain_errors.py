"""Errors in a host's own script, ours, of image workers and of a full disk: their message, without a traceback."""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from traceback import walk_tb
from types import TracebackType
from typing import Any, NoReturn

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.core.escaping import visible
from tllm_plugin.core.worker_errors import plain_error

_FAILED = 1
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO}
_told = threading.Lock()


def say_errors_plainly() -> None:
    """End the process with a message alone from here on, where an error is ours or that of a worker that reads images.

    Other errors stay as they are. A full disk is told likewise, by the thread that meets it: a host would wait for
    ever until the thread of its TensorBoard writer, which has ended, has written what was logged.
    """
    sys.excepthook = _say
    threading.excepthook = _say_of_thread


@contextmanager
def ending_plainly() -> Iterator[None]:
    """End the process with one line if the block, a host's script, meets a disk that takes no more."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            _end(error, error.__traceback__)
        raise


def _say(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    plain = plain_error(error) or error
    if isinstance(plain, TLLMError):
        print(f"tllm: {visible(str(plain), keep=chr(10))}", file=sys.stderr)
    elif isinstance(error, OSError) and error.errno in _FULL:
        _end(error, traceback)
    else:
        sys.__excepthook__(kind, error, traceback)


def _say_of_thread(args: threading.ExceptHookArgs) -> None:
    if isinstance(args.exc_value, OSError) and args.exc_value.errno in _FULL:
        _end(args.exc_value, args.exc_traceback)
    threading.__excepthook__(args)


def _end(error: OSError, traceback: TracebackType | None) -> NoReturn:
    """Say it once, and end at once: other threads wait for this one, and what runs at exit would write once more."""
    _told.acquire()  # For ever, where another thread is about to end the process.
    named = [_file_of(frame.f_locals.get("self")) for frame, _ in walk_tb(traceback)]
    path = error.filename or next(filter(None, reversed(named)), "a file")
    print(f"tllm: Cannot write {visible(os.fsdecode(path))}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(_FAILED)


def _file_of(writer: Any) -> str:
    """Return what a writer of TensorBoard's or of tensorboardX's writes to; empty if it is neither."""
    found = getattr(writer, "_file_name", None) or getattr(getattr(writer, "_writer", None), "filename", None)
    return os.fsdecode(found) if isinstance(found, (str, bytes)) else ""
