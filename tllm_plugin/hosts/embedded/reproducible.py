"""The same bits from the same steps on a GPU, too: what resumed runs and shared beginnings are exact by."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from yacs.config import CfgNode


@contextmanager
def reproducible(cfg: CfgNode) -> Iterator[None]:
    """Let PyTorch take only algorithms that give the same result every time, if `RUNTIME.DETERMINISTIC` says so.

    On a CPU it takes no others. An operation without one is told of in a warning and goes on. What other code of the
    process has set is restored afterwards.

    Args:
        cfg: Of a run.

    Source: "Reproducibility" in PyTorch's notes.
    """
    if not torch.cuda.is_available() or not cfg.RUNTIME.DETERMINISTIC:
        yield
        return
    # Read by cuBLAS when it is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    mode, benchmark = torch.get_deterministic_debug_mode(), torch.backends.cudnn.benchmark
    memory: Any = torch.utils.deterministic
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False  # Another algorithm may be the fastest next time.
    # For finding programs that read what they have not written; it costs a step of its own for each tensor.
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.set_deterministic_debug_mode(mode)
        torch.backends.cudnn.benchmark = benchmark
        memory.fill_uninitialized_memory = fill
