"""Apply teaching weights between 0 and 1: mix the teacher's logits with the label and weaken feature losses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.outputs import find_logits, has_rows, map_tensors, named_logits, possible_logits, tensors_in

#: What distillers call their temperature.
_NAMES = ("temperature", "T", "kd_T", "tau")


def mixed_logits(logits: Tensor, target: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Return logits whose softmax at `temperature` is `w * softmax(logits / temperature) + (1 - w) * onehot(target)`.

    The logsumexp of each row (of logits / temperature) is preserved. Rows of weight 1 are returned bit for bit.

    Args:
        logits: (n, C), unnormalised teacher logits; computed in at least float32, returned in the input type.
        target: (n,) int64.
        weights: (n,) w in (0, 1].
        temperature: T > 0.

    >>> mixed = mixed_logits(torch.tensor([[0.0, 0.0]]), torch.tensor([1]), torch.tensor([0.5]), temperature=4.0)
    >>> (mixed / 4).softmax(1)
    tensor([[0.2500, 0.7500]])
    """
    precise = logits.to(torch.promote_types(logits.dtype, torch.float32))
    weights = weights.to(precise.dtype)
    scaled, column = precise / temperature, target.unsqueeze(1)
    label = torch.logaddexp(
        weights.log() + scaled.gather(1, column).squeeze(1), (-weights).log1p() + scaled.logsumexp(1)
    )
    others = precise + temperature * weights.log().unsqueeze(1)
    mixed = others.scatter(1, column, temperature * label.to(others.dtype).unsqueeze(1))
    return torch.where(weights.unsqueeze(1) < 1, mixed.to(logits.dtype), logits)


def temperature_of(distiller: nn.Module) -> float:
    """Return the temperature of a distiller from the attribute that holds it, or 1 without one.

    Methods without a temperature match features, or logits at temperature 1.
    """
    for name in _NAMES:
        value: Any = getattr(distiller, name, None)
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        if isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < math.inf:
            return float(value)
    return 1.0


def _scaled(weights: Tensor, gradient: Tensor) -> Tensor:
    return gradient * weights.to(gradient.dtype).view((-1,) + (1,) * (gradient.dim() - 1))


class _Scaled(torch.autograd.Function):
    """Scale gradients like a hook on a view, but also under torch.compile; forbids in-place changes of the output."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor, weights: Tensor) -> Tensor:
        ctx.save_for_backward(weights)
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        (weights,) = ctx.saved_tensors
        return _scaled(weights, gradient), None


@dataclass
class RowWeights:
    """Teaching weights of the rows that an inner distiller sees in one call.

    Args:
        weights: (n_d,), in (0, 1].
        target: (n_d,) int64.
        num_classes: C.
        temperature: T > 0 of the teacher's softened predictions.
        leaf: Index of the logits among the tensors of the student's output; None finds them by shape.
        columns: Number of columns of the logits, which may exceed C; None before the first call.
    """

    weights: Tensor
    target: Tensor
    num_classes: int
    temperature: float
    leaf: int | None = None
    columns: int | None = None

    def mix(self, output: Any) -> Any:
        """Mix the logits in a teacher's output with the labels; an output without logits is returned unchanged.

        Raises:
            ConfigError: Several tensors could be the logits.
        """
        rows = self.target.shape[0]
        if not possible_logits(output, rows, self.num_classes, self.columns):
            return output
        logits = find_logits(output, rows, self.num_classes, network="teacher", columns=self.columns)
        mixed = mixed_logits(logits, self.target, self.weights, self.temperature)
        return map_tensors(output, lambda tensor: mixed if tensor is logits else tensor)

    def scale(self, output: Any) -> Any:
        """Multiply the gradient of each row by its weight in all features of a student's output.

        Gradients of the logits are unchanged, as are gradients of tensors in a mapping whose name ends in `logits`.
        """
        rows = self.target.shape[0]
        tensors = list(tensors_in(output))
        first = find_logits(output, rows, self.num_classes) if self.leaf is None else tensors[self.leaf]
        self.columns = first.shape[1]
        kept = {id(first), *(id(tensor) for tensor in named_logits(output))}

        def lessened(tensor: Tensor) -> Tensor:
            if id(tensor) in kept or not (tensor.requires_grad and has_rows(tensor, rows)):
                return tensor
            # A separate view leaves the gradients that flow from the logits through the same features unchanged.
            if torch.compiler.is_compiling():
                compiled: Tensor = _Scaled.apply(tensor, self.weights)
                return compiled
            view = tensor.view_as(tensor)
            view.register_hook(partial(_scaled, self.weights))
            return view

        return map_tensors(output, lessened)


def check_temperature(temperature: float | None) -> float | None:
    """Validate and return a temperature; None is accepted.

    Raises:
        ConfigError: The value is not a number above 0.
    """
    fine = isinstance(temperature, (int, float)) and not isinstance(temperature, bool) and 0 < temperature < math.inf
    if temperature is not None and not fine:
        raise ConfigError(f"Expected `temperature` to be a number above 0, but got {temperature!r}")
    return temperature
