"""Reject NaN or infinite weights before anything is computed with them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.errors import FileFormatError

# Extra state of modules, in which NaN may mean that a value was not measured.
_EXTRA_STATE = "_extra_state"


def check_finite(state: Mapping[Any, Any], what: str | os.PathLike[str]) -> None:
    """Check that all numbers of a state are finite.

    Args:
        state: State of a network or an optimizer: tensors by name, possibly in nested mappings or lists.
        what: File or owner of the weights, for the message.

    Raises:
        FileFormatError: Some values are NaN or infinite; the message names the first tensor and counts the others.

    >>> check_finite({"fc.weight": torch.tensor([1.0, float("nan")])}, "teacher.pth")
    Traceback (most recent call last):
    tllm_plugin.core.errors.FileFormatError: Expected teacher.pth to hold finite weights, but `fc.weight` has 1 of 2 \
that is NaN or infinite; it was damaged, or its training had diverged
    """
    counted = ((name, int((~torch.isfinite(tensor)).sum()), tensor.numel()) for name, tensor in _tensors(state, ""))
    found = [item for item in counted if item[1]]
    if not found:
        return
    name, bad, size = found[0]
    others = f", and so have {len(found) - 1} more" if len(found) > 1 else ""
    raise FileFormatError(
        f"Expected {os.fspath(what)} to hold finite weights, but `{name}` has {bad} of {size} that "
        f"{'is' if bad == 1 else 'are'} NaN or infinite{others}; it was damaged, or its training had diverged"
    )


def _tensors(state: Any, prefix: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(state, Tensor):
        if state.is_floating_point() or state.is_complex():
            yield prefix, state
    elif isinstance(state, Mapping):
        for name, value in state.items():
            if not str(name).endswith(_EXTRA_STATE):
                yield from _tensors(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(state, list | tuple):
        for place, value in enumerate(state):
            yield from _tensors(value, f"{prefix}.{place}")
