"""Let mdistiller run on current PyTorch and without a GPU, by changes at run time.

`patches/mdistiller/0002` makes the same changes in the files. A patched checkout is not changed again.
"""

from __future__ import annotations

import getpass
import importlib
import sys
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


def apply_compat() -> None:
    """Change the `mdistiller` that can be imported, for the rest of this process."""
    _mend_user_name()
    if not torch.cuda.is_available():
        _stay_on_cpu()
    importlib.import_module("mdistiller.engine")
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("mdistiller.engine")]
    for name, mend in (("adjust_learning_rate", _plain_rate), ("accuracy", _few_classes)):
        originals = {getattr(module, name) for module in modules if hasattr(module, name)}
        mended = {original: mend(original) for original in originals if not hasattr(original, "__wrapped__")}
        for module in modules:
            if getattr(module, name, None) in mended:
                setattr(module, name, mended[getattr(module, name)])


def _mend_user_name() -> None:
    """Return a user name where the user id has none, as in containers; the host asks for it without using it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        getpass.getuser = lambda: "user"


def _stay_on_cpu() -> None:
    """Make `.cuda()` return its object, and process groups and DistributedDataParallel use the CPU."""

    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    Tensor.cuda = stay  # type: ignore[method-assign, assignment]
    nn.Module.cuda = stay  # type: ignore[method-assign, assignment]
    torch.cuda.set_device = lambda device: None
    begin, parallel = dist.init_process_group, DistributedDataParallel.__init__
    if hasattr(begin, "without_nccl"):
        return

    @wraps(begin)
    def without_nccl(backend: str | None = None, *args: Any, **kwargs: Any) -> None:
        begin("gloo" if backend == "nccl" else backend, *args, **kwargs)

    @wraps(parallel)
    def without_devices(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> None:
        parallel(self, module, **{**kwargs, "device_ids": None, "output_device": None})

    without_nccl.without_nccl = True  # type: ignore[attr-defined]
    dist.init_process_group = without_nccl
    DistributedDataParallel.__init__ = without_devices  # type: ignore[method-assign, assignment]


def _plain_rate(adjust: Callable[..., Any]) -> Callable[..., Any]:
    """Convert learning rates of NumPy to Python floats: `torch.load` refuses NumPy values in a checkpoint."""

    @wraps(adjust)
    def mended(*args: Any, **kwargs: Any) -> Any:
        rate = adjust(*args, **kwargs)
        for optimizer in (value for value in (*args, *kwargs.values()) if isinstance(value, torch.optim.Optimizer)):
            for group in optimizer.param_groups:
                group["lr"] = float(group["lr"])
        return rate if rate is None else float(rate)

    return mended


def _few_classes(accuracy: Callable[..., Any]) -> Callable[..., Any]:
    """Limit `topk` to the number of classes."""

    @wraps(accuracy)
    def mended(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> Any:
        return accuracy(output, target, tuple(min(k, output.shape[1]) for k in topk))

    return mended
