"""Augmentation and normalisation of whole batches as tensors, on whichever device the batch is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class ShiftFlip:
    """Random crop out of a zero-padded image, then a random horizontal flip: the usual augmentation of CIFAR.

    Drawing and applying are apart, so that an epoch's random numbers are drawn once, on the CPU, for every image of
    the set: an image's augmentation then does not depend on the device, the batch size or the other images.

    Args:
        padding: Pixels added to each side before cropping back to the image's size: the largest shift.
        flip: Whether every second image, on average, is mirrored.
        views: Outcomes that each image may have, chosen by its place in the data set; 0 for all.
    """

    padding: int
    flip: bool
    views: int = 0

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """Random numbers for `count` images, the first of the data set.

        Returns:
            (count, 3) int64 on the CPU: top and left edge of the crop in the padded image, 0..2 * padding, and 1 for
            images that are mirrored, else 0.
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
        """Augment `images` (B, C, H, W) by their rows of `draws` (B, 3); same shape and dtype."""
        top, left, mirrored = draws.unbind(1)
        if self.padding:
            images = crop_padded(images, top, left, self.padding)
        return mirror_rows(images, mirrored) if self.flip else images


def crop_padded(images: Tensor, top: Tensor, left: Tensor, padding: int) -> Tensor:
    """Zero-pad each image and cut out its own window of the original size.

    Args:
        images: (B, C, H, W), any dtype.
        top: (B,) int64, first row of the window in the padded image, 0..2 * padding.
        left: (B,) int64, first column likewise.
        padding: Pixels added to each side.

    Returns:
        (B, C, H, W), same dtype.

    >>> crop_padded(torch.tensor([[[[1, 2], [3, 4]]]]), torch.tensor([2]), torch.tensor([1]), padding=1)
    tensor([[[[3, 4],
              [0, 0]]]])
    """
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding, padding, padding, padding))
    # A view of every window of every image, (B, tops, lefts, C, H, W); only the chosen ones are ever copied.
    windows = padded.unfold(2, height, 1).unfold(3, width, 1).permute(0, 2, 3, 1, 4, 5)
    return windows[torch.arange(len(images), device=images.device), top, left]


def mirror_rows(images: Tensor, mirrored: Tensor) -> Tensor:
    """Flip left and right those images (B, C, H, W) whose entry in `mirrored` (B,), int64, is 1 and not 0.

    >>> mirror_rows(torch.tensor([[[[1, 2]]], [[[3, 4]]]]), torch.tensor([0, 1])).flatten()
    tensor([1, 2, 4, 3])
    """
    # Whole images are picked from both versions: several times faster than torch.where with a broadcast condition.
    count = len(images)
    picked = torch.arange(count, device=images.device) + count * mirrored
    return torch.cat([images, images.flip(-1)]).index_select(0, picked)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Scale pixels to 0..1, subtract the mean and divide by the standard deviation.

    The order of operations is that of torchvision's `ToTensor` and `Normalize`, so that the result equals theirs.

    Args:
        images: (B, C, H, W) uint8.
        mean: (C, 1, 1) float32, in units of the 0..1 range.
        std: (C, 1, 1) float32 likewise.

    Returns:
        (B, C, H, W) float32.
    """
    return images.to(torch.float32).div_(255).sub_(mean).div_(std)


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and (population) standard deviation of each channel over all pixels of (N, C, H, W) uint8 images.

    Computed from exact pixel counts, so that neither the order of the images nor rounding matters. A channel that is
    constant gets the standard deviation 1, which leaves it finite.

    Returns:
        C means and C standard deviations, in units of the 0..1 range.
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
    """`values` as (C, 1, 1) float32 on `device`, ready to be combined with a batch."""
    return torch.tensor(values, dtype=torch.float32, device=device).view(-1, 1, 1)
