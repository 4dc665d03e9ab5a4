"""CIFAR-100, read with torchvision."""

from __future__ import annotations

from http.client import HTTPException
from pathlib import Path

import torch
from torchvision import datasets

from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.data.bundle import DataBundle
from tllm_plugin.data.image_set import ImageSet
from tllm_plugin.data.in_memory import in_memory_bundle
from tllm_plugin.data.registry import DATA_SETS

IMAGE_SIZE = 32
# The usual statistics for CIFAR-100, also used in both hosts, so that students are comparable.
MEAN = (0.5071, 0.4867, 0.4408)
STD = (0.2675, 0.2565, 0.2761)


@DATA_SETS.register("cifar100")
def load_cifar100(path: str, *, download: bool = False, image_size: int = 0, **_: object) -> DataBundle:
    """Load CIFAR-100: 50,000 training and 10,000 test images of 32 x 32 pixels in 100 classes.

    The files are pickles; torchvision verifies their published checksums before reading them.

    Args:
        path: Folder that contains torchvision's `cifar-100-python`, or into which it is downloaded.
        download: Whether to download the archive (169 MB) if files are missing.
        image_size: 0 or 32.

    Raises:
        ConfigError: The path is empty, or the image size is another one.
        DataError: Files are missing or damaged, or the download failed.
    """
    if not path:
        raise ConfigError("Expected `path` to be the folder of CIFAR-100's files, but got ''")
    if image_size not in (0, IMAGE_SIZE):
        raise ConfigError(f"Expected `image_size` to be 0 or {IMAGE_SIZE} for cifar100, but got {image_size}")
    root = Path(path).expanduser()
    try:
        train = datasets.CIFAR100(str(root), train=True, download=download)
        test = datasets.CIFAR100(str(root), train=False)
    except (OSError, RuntimeError, HTTPException) as error:
        hint = "the download failed" if download else "set `download` to download them"
        raise DataError(
            f"Expected `{root / datasets.CIFAR100.base_folder}` to hold the files of CIFAR-100, "
            f"but they are missing or damaged ({hint}): {error}"
        ) from error
    return in_memory_bundle(
        tuple(train.classes), train=_image_set(train), test=_image_set(test), flip=True, mean=MEAN, std=STD
    )


def _image_set(part: datasets.CIFAR100) -> ImageSet:
    images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
    return ImageSet(images, torch.tensor(part.targets, dtype=torch.int64))
