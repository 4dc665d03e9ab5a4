"""Locks between processes that share a folder; the system releases them when a process dies, however it dies."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

try:
    import fcntl

    _HAS_LOCKS = True
except ImportError:  # Windows.
    _HAS_LOCKS = False

Result = TypeVar("Result")


@contextmanager
def held(path: Path, *, wait: bool = True, remove: bool = False) -> Iterator[int]:
    """Hold the lock of a file for the duration of the block; wait for it as long as another process has it.

    Yields the file's descriptor. A child process that inherits it holds the lock, too, until it ends.

    Args:
        path: Of the file; made where it is missing.
        wait: For another process.
        remove: The file after the block. All who lock it have to say so.

    Raises:
        BlockingIOError: Another process has it, and `wait` is False.
        OSError: Files cannot be locked here.
    """
    if not _HAS_LOCKS:
        raise OSError(errno.ENOLCK, "this system has no file locks", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:  # Closing it releases the lock.
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if remove and not _is_at(path, file.fileno()):
                continue  # Whoever had the lock has removed the file in the meantime.
            try:
                yield file.fileno()
            finally:
                if remove:
                    path.unlink(missing_ok=True)
            return


def _is_at(path: Path, descriptor: int) -> bool:
    """Tell whether an open file is still the one at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def each_under_its_lock(folder: Path, tasks: Mapping[str, Callable[[int], Result]]) -> dict[str, Result]:
    """Do tasks under the locks of their names, first those that no other process is at; return what they return.

    Args:
        folder: Of the locks.
        tasks: By the names of their locks; called with the lock's descriptor. What another process did meanwhile they
            must find done.
    """
    done: dict[str, Result] = {}
    for wait in (False, True):
        for name in [name for name in tasks if name not in done]:
            with ExitStack() as stack:
                try:
                    lock = stack.enter_context(held(folder / name, wait=wait))
                except BlockingIOError:
                    continue
                done[name] = tasks[name](lock)
    return done


def is_held(path: Path) -> bool:
    """Tell whether a process, this one included, holds the lock of a file; False where there is no such file."""
    if not _HAS_LOCKS:
        return False
    try:
        with path.open("r") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False
