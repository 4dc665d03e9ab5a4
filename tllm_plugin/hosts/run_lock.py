"""Let one command at a time work in the folder of a run."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts import processes
from tllm_plugin.runs.locks import held

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
#: Where threads of this process are at work, by their numbers, and the descriptors of the locks.
_own: set[tuple[int, Path]] = set()
_descriptors: set[int] = set()
_warned: set[str] = set()


@contextmanager
def run_lock(folder: Path, *, wait: bool) -> Iterator[None]:
    """Lock the folder of a run for the duration of the block, so that no other command works in it.

    The lock is a hidden file beside the folder and is released when the process ends; it can be acquired again inside
    the block. All ranks must enter the block; rank 0 holds the lock. Without locks in the file system, a warning is
    logged.

    Args:
        folder: Folder of the run; need not exist.
        wait: Whether to wait until another command has ended.

    Raises:
        ConfigError: Another command holds the lock, and `wait` is False.
    """
    own = threading.get_ident(), folder
    if own in _own:
        yield
        return
    with ExitStack() as stack:
        waited = False
        while not processes.from_main(lambda: _locked(stack, folder)):
            if not wait:
                raise ConfigError(f"Expected to train {folder} alone, but another command trains it")
            if not waited:
                logger.info("waiting for another command that trains %s", folder)
            waited = True
            time.sleep(_POLL_SECONDS)
        _own.add(own)
        stack.callback(_own.remove, own)
        yield


def _locked(stack: ExitStack, folder: Path) -> bool:
    try:
        descriptor = stack.enter_context(held(folder.with_name(f".{folder.name}.lock"), wait=False, remove=True))
    except BlockingIOError:
        return False
    except OSError as error:
        if str(error.strerror) not in _warned:
            _warned.add(str(error.strerror))
            logger.warning("%s cannot be locked (%s): do not train a run by two commands at once", folder, error)
    else:
        _descriptors.add(descriptor)
        stack.callback(_descriptors.remove, descriptor)
    return True


def _let_go() -> None:
    """Give up, in a child process that reads images, the parent's locks: it outlives a parent that is killed."""
    for descriptor in _descriptors:
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, descriptor)  # Not closed: the file object that the child has copied will do that.
        os.close(nothing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
