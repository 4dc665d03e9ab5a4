"""Augment and normalise batches of images as tensors, on the device of the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ShiftFlip:
    """Random crop of the zero-padded image and random horizontal flip, the usual augmentation for CIFAR.

    Random numbers of an epoch are drawn once, on the CPU, for all images of the data set. The augmentation of an image
    therefore does not depend on the device, the batch size or other images.

    Args:
        padding: Number of pixels added to each side before cropping to the original size; the largest shift.
        flip: Whether each image is mirrored with probability 1/2.
        views: Number of outcomes that each image may have, chosen by its position in the data set; 0 for all.
    """

    padding: int
    flip: bool
    views: int = 0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw the random numbers for the first `count` images of the data set.

        Returns:
            (count, 3) int64 on the CPU: top and left edge of the crop in the padded image, in [0, 2 * padding], and 1
            for mirrored images, 0 for others.
        """
        edges = torch.randint(0, 2 * self.padding + 1, (count, 2), generator=generator)
        mirrored = torch.randint(0, 2 if self.flip else 1, (count, 1), generator=generator)
        return self.limited(torch.cat([edges, mirrored], dim=1), torch.arange(count))

    def limited(self, draws: Tensor, rows: Tensor) -> Tensor:
        """Return draws that are among the `views` outcomes of each image.

        Args:
            draws: (n, 3), see `draw`.
            rows: (n,) int64, places of the images in the data set.
        """
        if not self.views:
            return draws
        edges, flips = 2 * self.padding + 1, 2 if self.flip else 1
        outcome = (draws[:, 0] * edges + draws[:, 1]) * flips + draws[:, 2]
        # Any fixed function of image and view that spreads well: two steps of a linear congruential generator.
        mixed = (rows * self.views + outcome % self.views) * 6364136223846793005 + 1442695040888963407
        mixed = mixed * 6364136223846793005 + 1442695040888963407
        chosen = (mixed >> 33).remainder(edges * edges * flips)
        return torch.stack([chosen // (flips * edges), chosen // flips % edges, chosen % flips], dim=1)

    def apply(self, images: Tensor, draws: Tensor) -> Tensor:
        """Augment `images` (B, C, H, W) with `draws` (B, 3); shape and dtype are unchanged."""
        top, left, mirrored = draws.unbind(1)
        if self.padding:
            images = crop_padded(images, top, left, self.padding)
        return mirror_rows(images, mirrored) if self.flip else images


def crop_padded(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Zero-pad each image and crop a window of the original size at its own position.

    Args:
        images: (B, C, H, W), any dtype.
        top: (B,) int64, first row of the window in the padded image, in [0, 2 * padding].
        left: (B,) int64, first column, in the same range.
        padding: Number of pixels added to each side.

    Returns:
        (B, C, H, W), same dtype.

    >>> crop_padded(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([2]), torch.tensor([1]), padding=1)
    tensor([[[[3, 4],
              [0, 0]]]])
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    # View of all windows of all images, (B, tops, lefts, C, H, W); only the selected windows are copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    return windows[torch.arange(len(images), device=images.device), top, left]


def mirror_rows(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror the images (B, C, H, W) whose entry in `mirrored` (B,) int64 is 1 instead of 0.

    >>> mirror_rows(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), torch.tensor([0, 1])).flatten()
    tensor([1, 2, 4, 3])
    """
    # Selecting whole images is several times faster than torch.where with a broadcast condition.
    count = len(images)
    picked = torch.arange(count, device=images.device) + count * mirrored
    return torch.cat([images, images.flip(-1)]).index_select(0, picked)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale pixels to 0..1, subtract the mean and divide by the standard deviation.

    Operations have the order of torchvision's `ToTensor` and `Normalize`, so that the results are equal.

    Args:
        images: (B, C, H, W) uint8.
        mean: (C, 1, 1) float32, mean of pixels in [0, 1].
        std: (C, 1, 1) float32, standard deviation of pixels in [0, 1].

    Returns:
        (B, C, H, W) float32.
    """
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and population standard deviation per channel over all pixels of (N, C, H, W) uint8 images.

    They are computed from exact pixel counts, so that neither the order of the images nor rounding has an effect. The
    standard deviation of a constant channel is replaced by 1.

    Returns:
        C means and C standard deviations of pixels in [0, 1].
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, stds = [], []
    for channel in range(images.shape[1]):
        counts = torch.bincount(images[:, channel].flatten(), minlength=256).to(torch.float64)
        share = counts / counts.sum()
        mean = (share * values).sum()
        std = (share * (values - mean).square()).sum().sqrt()
        means.append(mean.item())
        stds.append(std.item() if counts.count_nonzero() > 1 else 1.0)
    return tuple(means), tuple(stds)


def per_channel(values: Sequence[float], device: torch.device) -> Tensor:
    """Return `values` as (C, 1, 1) float32 on `device`, for broadcasting with a batch."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
