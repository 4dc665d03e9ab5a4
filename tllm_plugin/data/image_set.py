"""Decoded images and labels as two tensors."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tllm_plugin.core.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Decoded images and labels in memory.

    Args:
        images: (N, C, H, W) uint8, pixels in [0, 255].
        labels: (N,) int64, class indices.

    Raises:
        DataError: A shape or dtype is wrong, or the numbers of images and labels differ.

    >>> len(ImageSet(torch.zeros(5, 3, 32, 32, dtype=torch.uint8), torch.arange(5)))
    5
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype != torch.uint8:
            raise DataError(f"Expected `images` to be (N, C, H, W) uint8, but got {_described(self.images)}")
        if self.labels.shape != self.images.shape[:1] or self.labels.dtype != torch.int64:
            raise DataError(
                f"Expected `labels` to be ({len(self.images)},) int64, one for each image, "
                f"but got {_described(self.labels)}"
            )

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> ImageSet:
        """Return the images and labels on `device`; tensors that are already there are not copied."""
        return ImageSet(self.images.to(device), self.labels.to(device))


def _described(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
