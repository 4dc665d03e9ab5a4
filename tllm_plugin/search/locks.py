"""Locks between processes that share a folder; the system releases them when a process dies, however it dies."""

from __future__ import annotations

import fcntl
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def held(path: Path) -> Iterator[int]:
    """Hold the lock of a file for the duration of the block; wait for it as long as another process has it.

    Yields the file's descriptor. A child process that inherits it holds the lock, too, until it ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()  # Closing the file releases the lock.


def each_under_its_lock(folder: Path, tasks: Mapping[str, Callable[[int], T]]) -> dict[str, T]:
    """Do tasks under the locks of their names, first those that no other process is at; return what they return.

    Args:
        folder: Of the locks.
        tasks: By the names of their locks; called with the lock's descriptor. What another process did meanwhile they
            must find done.
    """
    done: dict[str, T] = {}
    for name, task in tasks.items():
        with _held_if_free(folder / name) as lock:
            if lock is not None:
                done[name] = task(lock)
    for name, task in tasks.items():
        if name not in done:
            with held(folder / name) as lock:
                done[name] = task(lock)
    return {name: done[name] for name in tasks}


@contextmanager
def _held_if_free(path: Path) -> Iterator[int | None]:
    """Like `held`, but without waiting: None where another process has the lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield None
        else:
            yield file.fileno()


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
