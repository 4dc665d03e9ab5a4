"""Validate arguments from user code: convert lists and arrays to tensors and reject invalid values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core import options
from tllm_plugin.core.errors import ConfigError


def is_integer(values: Tensor) -> bool:
    """Return whether a tensor has an integer type; bool does not count."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def as_indices(name: str, values: Any, below: int | None = None) -> Tensor:
    """Return indices as (n,) int64 on the CPU.

    Args:
        name: Name of the argument, used in error messages.
        values: A list, a tuple, an array or a tensor of any integer type.
        below: Exclusive upper bound; None for no bound.

    Raises:
        ConfigError: The values are not integers (bools and floats are rejected), out of range, or not one-dimensional.

    >>> as_indices("labels", [2, 0, 1])
    tensor([2, 0, 1])
    >>> as_indices("labels", ["cat", "dog"])
    Traceback (most recent call last):
    tllm_plugin.core.errors.ConfigError: Expected `labels` to be whole numbers from 0, but got 'cat'
    """
    wanted = f"Expected `{name}` to be whole numbers " + ("from 0" if below is None else f"in [0, {below})")
    values = _plain(values)
    if isinstance(values, (list, tuple, range)):
        # `[True, 2]` would silently become numbers.
        odd = next((value for value in values if isinstance(value, (bool, str, bytes, float, type(None)))), None)
        if odd is not None or None in values:
            raise ConfigError(f"{wanted}, but got {odd!r}")
        if not len(values):
            return torch.zeros(0, dtype=torch.int64)
    indices = _as_tensor(wanted, values)
    if indices.dim() != 1:
        raise ConfigError(f"Expected `{name}` to be in one row, of shape (n,), but got shape {tuple(indices.shape)}")
    if not is_integer(indices):
        raise ConfigError(f"{wanted}, but got {str(indices.dtype).removeprefix('torch.')}")
    indices = indices.to("cpu", torch.int64)
    outside = indices < 0 if below is None else (indices < 0) | (indices >= below)
    if bool(outside.any()):
        place = int(outside.nonzero()[0])
        raise ConfigError(f"{wanted}, but got {int(indices[place])} in place {place}")
    return indices


def as_flags(name: str, values: Any, num_classes: int) -> Tensor:
    """Return flags as (num_classes,) bool.

    Raises:
        ConfigError: The number or type of the values is wrong; a list of class indices is rejected.
    """
    wanted = f"Expected `{name}` to be {num_classes} truth values, one per class"
    flags = _as_tensor(wanted, _plain(values))
    if flags.shape != (num_classes,) or flags.dtype != torch.bool:
        raise ConfigError(f"{wanted}, but got {flags.dtype} of shape {tuple(flags.shape)}")
    return flags


def as_weights(name: str, values: Any, num_classes: int) -> Tensor:
    """Return numbers in [0, 1] as (num_classes,) float32.

    Raises:
        ConfigError: The number or type of the values is wrong, or one is outside [0, 1] or NaN.
    """
    wanted = f"Expected `{name}` to be {num_classes} numbers in [0, 1], one per class"
    weights = _as_tensor(wanted, _plain(values))
    if weights.shape != (num_classes,) or not weights.is_floating_point():
        raise ConfigError(f"{wanted}, but got {weights.dtype} of shape {tuple(weights.shape)}")
    weights = weights.to("cpu", torch.float32)
    outside = ~((weights >= 0) & (weights <= 1))
    if bool(outside.any()):
        place = int(outside.nonzero()[0])
        raise ConfigError(f"{wanted}, but got {float(weights[place]):g} in place {place}")
    return weights


def whole_number(name: str, value: Any, least: int) -> int:
    """Validate and return an integer of at least `least`.

    Raises:
        ConfigError: The value is not an integer, or too small.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__") or value.__index__() < least:
        raise ConfigError(f"Expected `{name}` to be a whole number of at least {least}, but got {value!r}")
    return int(value.__index__())


def number_in(
    name: str, value: Any, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> float:
    """Validate and return a number between `low` and `high`; an open end is excluded.

    Raises:
        ConfigError: The value is not a number, or outside the interval.
    """
    expected = options.number_in(low, high, open_low=open_low, open_high=open_high)(value)
    if expected is not None:
        raise ConfigError(f"Expected `{name}` to be {expected}, but got {value!r}")
    return float(value)


def _plain(values: Any) -> Any:
    """Convert arrays to a form that PyTorch accepts: positive strides, native byte order, objects as a list."""
    if isinstance(values, Tensor) or not hasattr(values, "dtype"):
        return values
    array = values.to_numpy() if hasattr(values, "to_numpy") else values  # Of pandas.
    if array.dtype.kind == "O":
        return array.tolist()
    return array.astype(array.dtype.newbyteorder("="), order="C")


def _as_tensor(wanted: str, values: Any) -> Tensor:
    if isinstance(values, Tensor):
        return values.detach()
    try:
        return torch.tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        dtype = getattr(values, "dtype", None)
        got = f"{type(values).__name__}" + (f" of {dtype}" if dtype is not None else "")
        raise ConfigError(f"{wanted}, but got {got} ({str(error).splitlines()[0]})") from None
