"""Prepare a process for scripts that were written for an old PyTorch and a GPU."""

from __future__ import annotations

import argparse
import importlib
import sys
import types
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Module that the hosts' scripts import.
_LOGGER = "tensorboard_logger"


def stand_in_for_what_is_gone() -> list[str]:
    """Prepare this process for a host's script; return what was changed, one sentence each.

    Without a CUDA device `.cuda()` leaves tensors and modules where they are; `tensorboard_logger`, which does not work
    with current protobuf, is a front for PyTorch's own writer; checkpoints of old versions, which hold options and
    NumPy's numbers, are read without running code from them.
    """
    notes = []
    scalar: Any = np.float64(0).__reduce__()[0]
    torch.serialization.add_safe_globals(
        [argparse.Namespace, np.dtype, type(np.dtype("f8")), (scalar, "numpy.core.multiarray.scalar"), scalar]
    )
    if not torch.cuda.is_available():
        for kind in (Tensor, nn.Module):
            kind.cuda = _stay  # type: ignore[assignment,method-assign]
        notes.append("no CUDA device: .cuda() leaves tensors and modules on the CPU")
    try:
        importlib.import_module(_LOGGER)
    except (ImportError, TypeError):  # TypeError: of its generated code, by protobuf.
        module = types.ModuleType(_LOGGER)
        module.Logger = _Logger  # type: ignore[attr-defined]
        sys.modules[_LOGGER] = module
        notes.append("tensorboard_logger does not work here: PyTorch's SummaryWriter is used instead")
    return notes


def _stay(self: Any, *arguments: Any, **keywords: Any) -> Any:
    return self


class _Logger:
    def __init__(self, logdir: str, flush_secs: float = 2, **keywords: Any) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.writer = SummaryWriter(logdir, flush_secs=max(1, int(flush_secs)))

    def log_value(self, name: str, value: Any, step: int | None = None) -> None:
        self.writer.add_scalar(name, float(value), step)
