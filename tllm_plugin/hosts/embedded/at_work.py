"""One at a time: of several commands that need the same run, one trains it and the others wait for it."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts import processes
from tllm_plugin.runs.locks import held

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
#: Where this process is at work.
_own: set[Path] = set()


@contextmanager
def at_work(folder: Path, *, wait: bool) -> Iterator[None]:
    """Be the only command that works in a run's folder for the duration of the block.

    The lock is a hidden file beside the folder, and does not outlive the process; the block may hold others of the same
    folder. Of several processes that train together all have to come here; the main one holds the lock. Where files
    cannot be locked there is a warning, no more.

    Args:
        folder: Of the run; need not exist.
        wait: For another command, until it has ended.

    Raises:
        ConfigError: Another command is at it, and `wait` is False.
    """
    if folder in _own:
        yield
        return
    with ExitStack() as stack:
        waited = False
        while not processes.from_main(lambda: _locked(stack, folder)):
            if not wait:
                raise ConfigError(f"Expected to train {folder} alone, but another command is at it")
            if not waited:
                logger.info("waiting for another command, which trains %s", folder)
            waited = True
            time.sleep(_POLL_SECONDS)
        _own.add(folder)
        stack.callback(_own.remove, folder)
        yield


def _locked(stack: ExitStack, folder: Path) -> bool:
    try:
        stack.enter_context(held(folder.with_name(f".{folder.name}.lock"), wait=False, remove=True))
    except BlockingIOError:
        return False
    except OSError as error:
        logger.warning("%s cannot be locked (%s): do not give two commands that train it at once", folder, error)
    return True
