"""Feature maps of two networks brought to one size."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F


def to_smaller_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps, (n, C, H, W) each, average-pooled to the size of the smaller one.

    On a GPU PyTorch's adaptive pooling adds up gradients in any order, so it is used only where it must be: where one
    size is no multiple of the other.
    """
    height, width = min(one.shape[-2:], other.shape[-2:])
    return _pool(one, height, width), _pool(other, height, width)


def _pool(maps: Tensor, height: int, width: int) -> Tensor:
    rows, columns = maps.shape[-2:]
    if (rows, columns) == (height, width):
        return maps
    if rows % height == 0 and columns % width == 0:
        return F.avg_pool2d(maps, (rows // height, columns // width))
    return F.adaptive_avg_pool2d(maps, (height, width))
