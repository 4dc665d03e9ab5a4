"""Print expected errors in a host's own script (ours, loader workers', a full disk's) without a traceback."""

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
    """From now on, end the process with a one-line message for errors of TLLM and of loader workers.

    Other errors keep their traceback. A full disk ends the process in the thread that encounters it: otherwise a host
    would wait forever for the dead thread of its TensorBoard writer.
    """
    sys.excepthook = _say
    threading.excepthook = _say_of_thread


@contextmanager
def ending_plainly() -> Iterator[None]:
    """End the process with a one-line message if the block, a host's script, cannot write to the disk."""
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
    """Print the message once and exit immediately: other threads wait for this one, and exit handlers would write
    again."""
    _told.acquire()  # Blocks if another thread is about to end the process.
    named = [_file_of(frame.f_locals.get("self")) for frame, _ in walk_tb(traceback)]
    path = error.filename or next(filter(None, reversed(named)), "a file")
    print(f"tllm: Cannot write {visible(os.fsdecode(path))}: {error.strerror}", file=sys.stderr, flush=True)
    os._exit(_FAILED)


def _file_of(writer: Any) -> str:
    """Return the file of a writer of TensorBoard or tensorboardX; empty for other objects."""
    found = getattr(writer, "_file_name", None) or getattr(getattr(writer, "_writer", None), "filename", None)
    return os.fsdecode(found) if isinstance(found, (str, bytes)) else ""
