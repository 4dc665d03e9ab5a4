"""Turn errors of `DataLoader` worker processes into one-line errors."""

from __future__ import annotations

import multiprocessing.connection
import re
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from time import sleep

from tllm_plugin.core import errors
from tllm_plugin.core.errors import DataError, TLLMError

_OURS = {name: kind for name, kind in vars(errors).items() if isinstance(kind, type) and issubclass(kind, TLLMError)}
_READING = ("OSError", "IOError", "FileNotFoundError", "PermissionError", "IsADirectoryError", "TimeoutError")

# How PyTorch names its files in shared memory.
_SHARED_FILE = re.compile(r"</?torch_\d+")
_CAUGHT = re.compile(r"Caught (\w+) in DataLoader worker process \d+\.")
_GONE = re.compile(r"DataLoader worker \(pid\S* [\d, ]+\) (is killed by signal: (?P<signal>[^.]+)|exited unexpectedly)")
_FEWER = "set fewer workers (DATASET.NUM_WORKERS, --num_workers)"

# Delay after which PyTorch notices that a worker is gone and reports the cause.
_LATE_SECONDS = 1.0

_NO_ROOM = (
    "Expected room in shared memory (/dev/shm) for the batches of the processes that read images, but there is none; "
    f"make it larger (docker run --shm-size 8g), {_FEWER}, or 0 to read without them"
)
_OPEN_FILES = (
    "Expected to be allowed as many open files as the processes that read images need, but there are too many; raise "
    f"the limit (ulimit -n) or {_FEWER}"
)


def plain_error(error: BaseException) -> TLLMError | None:
    """Return a one-line error for an error that a loader's worker caused; None for all other errors.

    PyTorch re-raises a worker's error with the worker's traceback as its message. A damaged image, full shared memory
    and a killed worker are not programming errors and become one line; other errors keep their traceback.

    Args:
        error: Error raised in the process that iterates over a `DataLoader`.
    """
    text = str(error)
    caught = _CAUGHT.match(text)
    if caught:
        return _of_worker(caught[1], text)
    if not isinstance(error, RuntimeError | OSError | EOFError):
        return None
    # The signal is in the message of the error or of its cause.
    gone = _GONE.search(f"{error.__cause__}") or _GONE.search(text)
    if _while_receiving(error):
        return _ended("ended")
    if gone and gone["signal"] == "Bus error":
        return DataError(_NO_ROOM)
    if gone:
        return _ended(f"was killed (signal {gone['signal']})" if gone["signal"] else "ended")
    return _of_sharing(text)


@contextmanager
def plain_errors() -> Iterator[None]:
    """Raise one-line errors for errors that a loader's workers cause; see `plain_error`."""
    try:
        yield
    except Exception as error:
        try:
            if _while_receiving(error):
                sleep(_LATE_SECONDS)
            plain = plain_error(error)
        except RuntimeError as later:  # Of PyTorch's handler of SIGCHLD, which raises wherever this process is.
            plain = plain_error(later)
        if plain is None:
            raise
        raise plain from None


def _ended(how: str) -> DataError:
    return DataError(
        f"Expected the processes that read images to go on, but one {how}, as happens where memory or shared memory "
        f"(/dev/shm) is short; "
        f"{_FEWER}, or 0 to read without them and see why"
    )


def _while_receiving(error: BaseException) -> bool:
    """Return whether `multiprocessing` lost the connection to another process."""
    if not isinstance(error, OSError | EOFError):
        return False
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_code.co_filename == multiprocessing.connection.__file__ for frame, _ in frames)


def _of_worker(name: str, text: str) -> TLLMError | None:
    found = re.findall(rf"^(?:\w+\.)*{name}: (.*)$", text, re.MULTILINE)
    said = found[-1] if found else name
    if name in _OURS:
        return _OURS[name](said)
    if sharing := _of_sharing(said):
        return sharing
    # Pillow's parsers raise many types.
    if name in _READING or name == "UnidentifiedImageError" or re.search(r"[/\\]PIL[/\\]", text):
        return DataError(f"Expected every image to be readable, but {said}")
    return None


def _of_sharing(text: str) -> DataError | None:
    """Return the error for a batch that could not be passed between processes."""
    shared = _SHARED_FILE.search(text)
    if "received 0 items of ancdata" in text or "Communication with the workers is no longer possible" in text:
        return DataError(_OPEN_FILES)
    if shared:
        return DataError(_OPEN_FILES if "Too many open files" in text else _NO_ROOM)
    return None
