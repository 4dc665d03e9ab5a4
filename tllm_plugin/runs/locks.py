"""File locks between processes, which the system releases when a process ends or is killed."""

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
    """Hold the lock of a file for the duration of the block; wait while another process holds it.

    Yield the descriptor of the file. A child process that inherits it also holds the lock until it ends.

    Args:
        path: Path of the file, which is created if it is missing.
        wait: Whether to wait for another process.
        remove: Whether to remove the file after the block; must be equal for all users of the lock.

    Raises:
        BlockingIOError: Another process holds the lock, and `wait` is False.
        OSError: The file system does not support locks.
    """
    if not _HAS_LOCKS:
        raise OSError(errno.ENOLCK, "this system has no file locks", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with path.open("a") as file:  # Closing the descriptor releases the lock.
            fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            if remove and not _is_at(path, file.fileno()):
                continue  # The previous holder has removed the file in the meantime.
            try:
                yield file.fileno()
            finally:
                if remove:
                    path.unlink(missing_ok=True)
            return


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether an open file is still the file at `path`."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def each_under_its_lock(folder: Path, tasks: Mapping[str, Callable[[int], Result]]) -> dict[str, Result]:
    """Run tasks under locks of their names, starting with tasks whose locks are free; return their results.

    Args:
        folder: Folder of the lock files.
        tasks: Tasks by the names of their locks, called with the descriptor of the lock. A task must return without
            work if another process has done it in the meantime.
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
    """Return whether any process, including this one, holds the lock of a file; False if the file is missing."""
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
