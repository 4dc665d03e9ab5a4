"""Run training steps of a distiller on one batch again and again, without a trace in it."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tllm_plugin.core.contract import named_losses

_SIMPLE = (bool, int, float, str, type(None))


@dataclass(frozen=True)
class Step:
    """Result of forward and backward pass.

    Args:
        seconds: Duration.
        loss: Sum of the losses' means.
        gradient: (P,) gradients of the student's parameters; without a gradient 0.
    """

    seconds: float
    loss: float
    gradient: Tensor

    def difference(self, other: Step) -> float:
        """Return the largest of 1 - cosine of the gradients and the relative differences of norm and loss."""
        norms = float(self.gradient.norm()), float(other.gradient.norm())
        if not all(np.isfinite([*norms, other.loss])) or min(norms) == 0:
            return float("inf")
        cosine = float(self.gradient @ other.gradient) / (norms[0] * norms[1])
        return max(1 - cosine, abs(norms[1] / norms[0] - 1), abs(other.loss - self.loss) / max(abs(self.loss), 1e-12))


class Trial:
    """A distiller and one training call; every step begins from the same state and random numbers.

    Args:
        distiller: In training mode.
        kwargs: Keywords of the call.
    """

    def __init__(self, distiller: nn.Module, kwargs: Mapping[str, Any]) -> None:
        self.distiller: Any = distiller
        self.kwargs = kwargs
        self.device = next(distiller.parameters()).device

    @contextmanager
    def untouched(self) -> Iterator[None]:
        """Restore weights, buffers, plain attributes, gradients and random numbers at the end of the block."""
        tensors = [*self.distiller.parameters(), *self.distiller.buffers()]
        gradients = [tensor.grad for tensor in tensors]
        values = [tensor.detach().clone() for tensor in tensors]
        attributes = [
            (module, {name: value for name, value in vars(module).items() if isinstance(value, _SIMPLE)})
            for module in self.distiller.modules()
        ]
        others = random.getstate(), np.random.get_state()
        with torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else []):
            try:
                yield
            finally:
                random.setstate(others[0])
                np.random.set_state(others[1])
                for module, before in attributes:
                    vars(module).update(before)
                with torch.no_grad():
                    for tensor, gradient, value in zip(tensors, gradients, values, strict=True):
                        tensor.grad = gradient
                        if not torch.equal(tensor, value):  # Writing would count as a change of the teacher.
                            tensor.copy_(value)

    def step(self) -> Step:
        """Make one step without an optimizer."""
        with self.untouched():
            for parameter in self.distiller.parameters():
                parameter.grad = None
            started = self._now()
            _, losses = self.distiller(**self.kwargs)[:2]
            loss: Any = sum(loss.mean() for loss in named_losses(losses).values())
            loss.backward()
            seconds = self._now() - started
            gradients = [
                torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                for parameter in self.distiller.student.parameters()
            ]
            flat = torch.cat([gradient.detach().float().contiguous().flatten() for gradient in gradients])
            return Step(seconds, float(loss.detach()), flat)

    def seconds_of(self, call: Callable[[], Any]) -> float:
        """Return the duration of a call, the device's work included."""
        started = self._now()
        call()
        return self._now() - started

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            return time.perf_counter()
        # On a CPU that other processes use as well, the time of the calling thread is the steadier measure.
        return time.thread_time()
