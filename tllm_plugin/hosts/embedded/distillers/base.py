"""Registry of the embedded host's distillers, and functions that several of them use."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.registry import Registry
from tllm_plugin.methods import Vanilla

#: Name -> (student, teacher, cfg) -> distiller, except for NONE, which takes the student alone.
distiller_dict: Registry[Callable[..., nn.Module]] = Registry("distiller")
distiller_dict.register("NONE")(Vanilla)


def to_smaller_size(one: Tensor, other: Tensor) -> tuple[Tensor, Tensor]:
    """Return two maps, (n, C, H, W) each, average-pooled to the size of the smaller one.

    Adaptive pooling is not deterministic on a GPU, so it is used only if one size is not a multiple of the other.
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
