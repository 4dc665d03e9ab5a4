"""Data sets: scikit-learn's digits, any image folder, CIFAR-100, CUB-200-2011.

>>> data = load_data("digits")
>>> data.num_classes, data.in_channels, data.image_size, len(data.train_labels), len(data.test_labels)
(10, 1, 8, 1197, 600)
>>> loader = data.train_loader(None, batch_size=128, seed=0, device="cpu")
>>> loader.set_epoch(3)
>>> image, target, index = next(iter(loader))
>>> tuple(image.shape)
(128, 1, 8, 8)
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data import cifar100, cub200, digits, image_folder  # noqa: F401 (they register themselves)
from tllm_plugin.data.bundle import DataBundle, Split
from tllm_plugin.data.class_order import ClassOrder
from tllm_plugin.data.image_set import ImageSet
from tllm_plugin.data.loaders import EvalLoader, TrainLoader
from tllm_plugin.data.registry import DATA_SETS, DataSetLoader

#: Data sets whose images are brought to any size; the others have one of their own.
ANY_SIZE = frozenset({"imagefolder", "cub200"})

__all__ = [
    "ANY_SIZE",
    "DATA_SETS",
    "DataBundle",
    "DataSetLoader",
    "EvalLoader",
    "ImageSet",
    "Split",
    "TrainLoader",
    "load_data",
]


def load_data(
    name: str,
    path: str = "",
    *,
    download: bool = False,
    image_size: int = 0,
    num_workers: int = 2,
    seed: int = 0,
    class_order: ClassOrder = "",
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
) -> DataBundle:
    """Load a data set by its name.

    Args:
        name: A key of `DATA_SETS`: digits, imagefolder, cifar100, cub200, or one that you registered.
        path: Folder of the data, for data sets on disk.
        download: Whether to download missing files, for data sets that support it.
        image_size: Height and width of the images in pixels; 0 keeps the stored size.
        num_workers: Number of processes that decode images; 0 decodes in the calling process.
        seed: Seed for registered data sets that draw their split; the splits of the package's data sets are fixed.
        class_order: Order of the class folders: "" for text order as in torchvision, "natural" as in timm, a file with
            one folder name per line, or these names.
        mean: Mean per channel that replaces the data set's own, for networks trained elsewhere.
        std: Standard deviation per channel that replaces the data set's own.

    Raises:
        ConfigError: The name is unknown, or the data set does not support an argument.
        DataError: Data are missing, damaged or incomplete; the message names the file or folder.
    """
    if image_size < 0:
        raise ConfigError(f"Expected `image_size` to be at least 0, but got {image_size}")
    if num_workers < 0:
        raise ConfigError(f"Expected `num_workers` to be at least 0, but got {num_workers}")
    load, options = DATA_SETS[name], {}
    if class_order:
        if "class_order" not in inspect.signature(load).parameters:
            raise ConfigError(
                f"Expected `class_order` with a data set of class folders, but {name} has an order of its own"
            )
        options["class_order"] = class_order
    bundle = load(path, download=download, image_size=image_size, num_workers=num_workers, seed=seed, **options)
    return bundle.normalised(mean, std)
