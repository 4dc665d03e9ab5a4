"""The content of files in a form that `==` compares."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


def plain(value: Any) -> Any:
    """Return `value` with its arrays and tensors as bytes, so that `==` compares everything."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, np.ndarray | torch.Tensor):
        array = np.asarray(value)
        return array.dtype.str, array.shape, array.tobytes()
    return value
