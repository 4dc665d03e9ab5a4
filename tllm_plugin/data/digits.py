"""scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels that are included in the package."""

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
    """Load the digits: 600 test images, 60 per class, and 1,197 training images.

    The split is fixed. Test images of a class are spread evenly over its images in file order, so that every writer is
    in both parts.

    Training images are shifted by at most one pixel and not mirrored, because mirrored digits are not digits.

    Args:
        path: Not used, because scikit-learn includes the data.
        image_size: 0 or 8.

    Raises:
        ConfigError: The image size is another one.
    """
    from sklearn import datasets  # Imported here, because the import takes a second.

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
    """Select `per_class` samples of each class, evenly spaced among the samples of the class.

    Args:
        labels: (N,) int64 with at least `per_class` samples of each class that occurs.
        per_class: Number of samples per class, at least 1.

    Returns:
        (N,) bool, True for selected samples.

    >>> spread_evenly(torch.tensor([0, 0, 0, 0, 1, 1]), 2).int()
    tensor([1, 0, 1, 0, 1, 1], dtype=torch.int32)
    """
    marked = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique():
        members = (labels == label).nonzero().squeeze(1)
        marked[members[torch.arange(per_class) * len(members) // per_class]] = True
    return marked
