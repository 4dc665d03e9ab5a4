"""What the stock mdistiller needs to run on current PyTorch and without a GPU, done at run time.

`patches/mdistiller/0002` does the same to the files. A checkout that has it is not changed by this.
"""

from __future__ import annotations

import getpass
import importlib
from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor, nn


def apply_mends() -> None:
    """Mend the `mdistiller` that can be imported, for the rest of this process."""
    _mend_user_name()
    if not torch.cuda.is_available():
        _stay_on_cpu()
    utils, trainer = (importlib.import_module(f"mdistiller.engine.{name}") for name in ("utils", "trainer"))
    for name, mend in (("adjust_learning_rate", _plain_rate), ("accuracy", _few_classes)):
        original = getattr(utils, name)
        if not hasattr(original, "__wrapped__"):
            mended = mend(original)
            for module in (utils, trainer):
                setattr(module, name, mended)


def _mend_user_name() -> None:
    """Containers run under user ids without a name; the host asks for the name and does not use it."""
    try:
        getpass.getuser()
    except (KeyError, OSError):
        getpass.getuser = lambda: "user"


def _stay_on_cpu() -> None:
    """The host calls `.cuda()` on everything."""

    def stay(self: Any, *args: Any, **kwargs: Any) -> Any:
        return self

    Tensor.cuda = stay  # type: ignore[method-assign, assignment]
    nn.Module.cuda = stay  # type: ignore[method-assign, assignment]


def _plain_rate(adjust: Callable[..., Any]) -> Callable[..., Any]:
    """A learning rate of NumPy's goes into the checkpoint, and `torch.load` then refuses that."""

    @wraps(adjust)
    def mended(epoch: int, cfg: Any, optimizer: torch.optim.Optimizer) -> float:
        rate = float(adjust(epoch, cfg, optimizer))
        for group in optimizer.param_groups:
            group["lr"] = float(group["lr"])
        return rate

    return mended


def _few_classes(accuracy: Callable[..., Any]) -> Callable[..., Any]:
    """With fewer than five classes there are no top five."""

    @wraps(accuracy)
    def mended(output: Tensor, target: Tensor, topk: tuple[int, ...] = (1,)) -> Any:
        return accuracy(output, target, tuple(min(k, output.shape[1]) for k in topk))

    return mended
