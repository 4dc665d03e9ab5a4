"""The same bits from the same steps on a GPU, too: what resumed runs and shared beginnings are exact by."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from yacs.config import CfgNode

from tllm_plugin.hosts.embedded.device import choose_device

_lock = threading.Lock()
_runs = 0
_before: dict[str, Any] = {}


@contextmanager
def reproducible(cfg: CfgNode) -> Iterator[None]:
    """Let PyTorch take only algorithms that give the same result every time, if `RUNTIME.DETERMINISTIC` says so.

    It is asked where a run computes on a GPU. An operation without such an algorithm is told of in a warning and goes
    on. What other code of the process has set is restored after the last of the runs that are trained at once, but for
    the environment variable that cuBLAS reads when it is first used.

    Args:
        cfg: Of a run.

    Raises:
        ConfigError: There is no such device.

    Source: "Reproducibility" in PyTorch's notes.
    """
    if not cfg.RUNTIME.DETERMINISTIC or choose_device(cfg).type != "cuda":
        yield
        return
    global _runs
    with _lock:
        if _runs == 0:
            _ask()
        _runs += 1
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if _runs == 0:
                _take_back()


def _ask() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    _before.update(
        mode=torch.get_deterministic_debug_mode(),
        benchmark=torch.backends.cudnn.benchmark,
        fill=memory.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False  # Another algorithm may be the fastest next time.
    # For finding programs that read what they have not written; it costs a step of its own for each tensor.
    memory.fill_uninitialized_memory = False


def _take_back() -> None:
    memory: Any = torch.utils.deterministic
    # Not `set_deterministic_debug_mode`, which leaves the compiler as it is.
    torch.use_deterministic_algorithms(_before["mode"] > 0, warn_only=_before["mode"] == 1)
    torch.backends.cudnn.benchmark = _before["benchmark"]
    memory.fill_uninitialized_memory = _before["fill"]
