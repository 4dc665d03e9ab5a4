"""Scikit-learn's handwritten digits: 1,797 real images of 8 x 8 pixels that come with the package."""

from __future__ import annotations

import torch
from torch import Tensor

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data.bundle import DataBundle
from tllm_plugin.data.image_set import ImageSet
from tllm_plugin.data.in_memory import in_memory_bundle
from tllm_plugin.data.registry import DATA_SETS

IMAGE_SIZE = 8
TEST_IMAGES_PER_CLASS = 60
_LARGEST_VALUE = 16


@DATA_SETS.register("digits")
def load_digits(path: str = "", *, image_size: int = 0, **_: object) -> DataBundle:
    """600 test images, 60 of every class, and the other 1,197 for training.

    The split is a constant of the data set. It is made by position, not by random numbers: the test images of a class
    are spread evenly over its images in file order, so that every writer's part of the file is in both parts.

    Training images are shifted by one pixel at most and not mirrored: a mirrored digit is no digit.

    Args:
        path: Not used; the data comes with scikit-learn.
        image_size: 0 or 8.

    Raises:
        ConfigError: Another image size.
    """
    from sklearn import datasets  # here, because it takes a second that users of other data need not wait

    if image_size not in (0, IMAGE_SIZE):
        raise ConfigError(f"Expected `image_size` to be 0 or {IMAGE_SIZE} for digits, but got {image_size}")
    digits = datasets.load_digits()
    images = torch.from_numpy(digits.images).mul(255 / _LARGEST_VALUE).round().to(torch.uint8).unsqueeze(1)
    labels = torch.from_numpy(digits.target).to(torch.int64)
    is_test = spread_evenly(labels, TEST_IMAGES_PER_CLASS)
    return in_memory_bundle(
        tuple(str(name) for name in digits.target_names),
        train=ImageSet(images[~is_test], labels[~is_test]),
        test=ImageSet(images[is_test], labels[is_test]),
        flip=False,
    )


def spread_evenly(labels: Tensor, per_class: int) -> Tensor:
    """Mark `per_class` samples of each class, at equal distances among the samples of the class.

    Args:
        labels: (N,) int64, at least `per_class` of each class that occurs.
        per_class: At least 1.

    Returns:
        (N,) bool.

    >>> spread_evenly(torch.tensor([0, 0, 0, 0, 1, 1]), 2).int()
    tensor([1, 0, 1, 0, 1, 1], dtype=torch.int32)
    """
    marked = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        marked[members[torch.arange(per_class) * len(members) // per_class]] = True
    return marked
