"""Loaders for CUB-200-2011 in the form of the hosts' own data sets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tllm_plugin.data.cub200 import BRIGHTNESS, IMAGE_SIZE, read_cub200
from tllm_plugin.data.decode import read_rgb
from tllm_plugin.data.image_folder import LARGE_IMAGE_MEAN, LARGE_IMAGE_STD
from tllm_plugin.data.streamed import CENTRE_CROP_SHARE
from tllm_plugin.hosts.single_rows import without_single_row


class Photographs(Dataset[Any]):
    """Data set of image files with labels.

    Args:
        files: Paths of the images.
        targets: Labels of the images.
        classes: Names of the classes.
        transform: Function from image to tensor.
        with_index: Whether items are `(image, target, index)`, as in a host's training data, or `(image, target)`.
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


def cub200_loaders(
    path: str, *, batch_size: int, test_batch_size: int, num_workers: int, with_index: bool = True
) -> tuple[DataLoader[Any], DataLoader[Any], int, int]:
    """Return (training loader, test loader, number of training images, number of classes).

    Args:
        path: Folder CUB_200_2011.
        batch_size: Number of training images per batch; they are shuffled and augmented as in the embedded host.
        test_batch_size: Number of test images per batch.
        num_workers: Number of loader processes.
        with_index: See `Photographs`; for the training images.

    Raises:
        ConfigError: The folder does not exist.
        DataError: The folder does not hold CUB-200-2011, or was not extracted completely.
    """
    birds = read_cub200(path)
    normalised = [transforms.ToTensor(), transforms.Normalize(LARGE_IMAGE_MEAN, LARGE_IMAGE_STD)]
    augmented = [transforms.RandomResizedCrop(IMAGE_SIZE), transforms.RandomHorizontalFlip()]
    train = Photographs(
        birds.train_files,
        birds.train_labels,
        birds.class_names,
        transforms.Compose([*augmented, transforms.ColorJitter(brightness=BRIGHTNESS), *normalised]),
        with_index=with_index,
    )
    cropped = [transforms.Resize(round(IMAGE_SIZE / CENTRE_CROP_SHARE)), transforms.CenterCrop(IMAGE_SIZE)]
    test = Photographs(
        birds.test_files,
        birds.test_labels,
        birds.class_names,
        transforms.Compose([*cropped, *normalised]),
        with_index=False,
    )
    return (
        without_single_row(DataLoader(train, batch_size=batch_size, shuffle=True, num_workers=num_workers)),
        DataLoader(test, batch_size=test_batch_size, num_workers=num_workers),
        len(train),
        len(birds.class_names),
    )
