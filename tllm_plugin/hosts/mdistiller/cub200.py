"""CUB-200-2011 for mdistiller, as `DATASET.TYPE: "cub200"` with `DATASET.PATH`."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data.cub200 import BRIGHTNESS, IMAGE_SIZE, read_cub200
from tllm_plugin.data.decode import read_rgb
from tllm_plugin.data.image_folder import LARGE_IMAGE_MEAN, LARGE_IMAGE_STD
from tllm_plugin.data.streamed import CENTRE_CROP_SHARE

TYPE = "cub200"


class Photographs(Dataset[Any]):
    """Image files with labels, in the form of the host's data sets.

    Args:
        files: Image files.
        targets: Their labels.
        classes: Names of the classes.
        transform: Image -> tensor.
        with_index: Whether an item is `(image, target, index)`, as the host's training data are, or without the index.
    """

    def __init__(
        self,
        files: tuple[str, ...],
        targets: tuple[int, ...],
        classes: tuple[str, ...],
        transform: Callable[[Any], Any],
        *,
        with_index: bool,
    ) -> None:
        self.files = files
        self.targets = list(targets)
        self.classes = classes
        self.transform = transform
        self.with_index = with_index

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        item = (self.transform(read_rgb(self.files[index])), self.targets[index])
        return (*item, index) if self.with_index else item


def offer_cub200(dataset: Any) -> None:
    """Let the host's `get_dataset` know the data set; a second call changes nothing.

    A script that has imported the function before keeps the old one: `tllm train --host mdistiller` has not.
    """
    original = dataset.get_dataset
    if hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def get_dataset(cfg: CfgNode) -> tuple[Any, Any, int, int]:
        if cfg.DATASET.TYPE != TYPE:
            found: tuple[Any, Any, int, int] = original(cfg)
            return found
        if cfg.DISTILLER.TYPE == "CRD":
            raise ConfigError(f"Expected `DATASET.TYPE` to be a data set of the host's for CRD, but got {TYPE!r}")
        return loaders(cfg)

    dataset.get_dataset = get_dataset


def loaders(cfg: CfgNode) -> tuple[Any, Any, int, int]:
    """Return what the host's `get_dataset` does: both loaders, the number of training images and of classes."""
    birds = read_cub200(cfg.DATASET.PATH)
    normalised = [transforms.ToTensor(), transforms.Normalize(LARGE_IMAGE_MEAN, LARGE_IMAGE_STD)]
    augmented = [transforms.RandomResizedCrop(IMAGE_SIZE), transforms.RandomHorizontalFlip()]
    train = Photographs(
        birds.train_files,
        birds.train_labels,
        birds.class_names,
        transforms.Compose([*augmented, transforms.ColorJitter(brightness=BRIGHTNESS), *normalised]),
        with_index=True,
    )
    cropped = [transforms.Resize(round(IMAGE_SIZE / CENTRE_CROP_SHARE)), transforms.CenterCrop(IMAGE_SIZE)]
    test = Photographs(
        birds.test_files,
        birds.test_labels,
        birds.class_names,
        transforms.Compose([*cropped, *normalised]),
        with_index=False,
    )
    workers = cfg.DATASET.NUM_WORKERS
    return (
        DataLoader(train, batch_size=cfg.SOLVER.BATCH_SIZE, shuffle=True, num_workers=workers),
        DataLoader(test, batch_size=cfg.DATASET.TEST.BATCH_SIZE, num_workers=workers),
        len(train),
        len(birds.class_names),
    )
