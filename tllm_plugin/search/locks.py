"""Locks between processes that share a folder; the system releases them when a process dies, however it dies."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold the lock of a file for the duration of the block; wait for it as long as another process has it.

    Yields the file's descriptor. A child process that inherits it holds the lock, too, until it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()  # Closing the file releases the lock.


def is_held(path: Path) -> bool:
    """Tell whether a process, this one included, holds the lock of a file; False where there is no such file."""
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
