"""Data sets for RepDistiller, which itself knows CIFAR-100 only: any folder of images, and CUB-200-2011."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from tllm_plugin.data.class_order import in_order, ordered
from tllm_plugin.data.decode import decode_files
from tllm_plugin.data.folder import FolderPart, find_parts, readable_names
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.photographs import cub200_loaders
from tllm_plugin.hosts.single_rows import without_single_row
from tllm_plugin.runs.run_folder import RunFolder

#: Values of --dataset that the host does not have.
DATASETS = ("imagefolder", "cub200")

#: Height and width in pixels for which the host's networks and scripts are written.
SIDE = 32


class FolderImages(Dataset[Any]):
    """Decoded images with the host's ways of returning them.

    Args:
        images: (N, 32, 32, 3) uint8.
        targets: (N,) class indices.
        classes: Names of the classes.
        transform: PIL image -> tensor.
        contrast: Contrastive samples per image, drawn from other classes; 0 for none.
        mode: `exact`: an image is its own positive sample; `relax`: any of its class is.
        with_index: Whether the sample's index is returned as well.
        files: One for each image, to remember a run by.
        class_folders: Names of the class folders, likewise.
    """

    def __init__(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        classes: tuple[str, ...],
        transform: Any,
        *,
        contrast: int = 0,
        mode: str = "exact",
        with_index: bool = False,
        files: tuple[str, ...] = (),
        class_folders: tuple[str, ...] = (),
    ) -> None:
        self.files, self.class_folders = files, class_folders
        self.data, self.targets, self.classes, self.transform = images, targets.tolist(), classes, transform
        self.contrast, self.mode, self.with_index = contrast, mode, with_index
        self.is_sample = contrast > 0
        if self.is_sample:
            self.cls_positive = [np.flatnonzero(targets == label).astype(np.int32) for label in range(len(classes))]
            self.cls_negative = [np.flatnonzero(targets != label).astype(np.int32) for label in range(len(classes))]

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> Any:
        """Return `(image, target)`, with `index` and a (K + 1,) int64 contrastive index where they are wanted."""
        image, target = self.transform(Image.fromarray(self.data[index])), self.targets[index]
        if self.is_sample:
            return image, target, index, self._contrast(index, target)
        return (image, target, index) if self.with_index else (image, target)

    def _contrast(self, index: int, target: int) -> np.ndarray:
        positive = index if self.mode == "exact" else np.random.choice(self.cls_positive[target])
        others = self.cls_negative[target]
        negative = np.random.choice(others, self.contrast, replace=self.contrast > len(others))
        return np.concatenate([[positive], negative]).astype(np.int64)


def load_images(options: Any) -> tuple[DataLoader[Any], DataLoader[Any], int, int]:
    """Return what the host's scripts want of a data set: training and test loader, training images, classes.

    Images of another size are cut to a centred square and scaled to 32 x 32. Augmentation is the host's of CIFAR-100:
    padding by 4 and random crop, random flip; normalised by the training images' own mean and standard deviation.
    CUB-200-2011 keeps its photographs' size and has the augmentation of the other hosts.

    Args:
        options: `dataset`, `data_folder`, `batch_size`, `num_workers`; of `train_student.py` also `distill`, `nce_k`,
            `mode`, of `train_teacher.py` `save_folder`, into which goes what the teacher is trained on.

    Raises:
        ConfigError: The order of the classes or the normalisation that is stated does not fit.
        DataError: The folder does not hold images as described in `tllm_plugin.data.folder`, or CUB-200-2011.
    """
    batch_size, workers = options.batch_size, options.num_workers
    method = getattr(options, "distill", None)
    if options.dataset == "cub200":
        loaders = cub200_loaders(
            options.data_folder,
            batch_size=batch_size,
            test_batch_size=max(1, batch_size // 2),
            num_workers=workers,
            with_index=method is not None,
        )
        _remember(options, *loaders[:2])
        return loaders
    train, test = find_parts(options.data_folder)
    folders = ordered(train.classes, getattr(options, "class_order", None) or "", train.root)
    train, test = in_order(train, folders), in_order(test, folders)
    classes = readable_names(train.root.parent, folders)
    images, test_images = (_decode(part, options.num_workers) for part in (train, test))
    mean, std = getattr(options, "mean", None), getattr(options, "std", None)
    plain = [transforms.ToTensor(), transforms.Normalize(*((mean, std) if mean else _statistics(images)))]
    moved = [transforms.RandomCrop(SIDE, padding=4), transforms.RandomHorizontalFlip()]
    train_set = FolderImages(
        images,
        train.labels.numpy(),
        classes,
        transforms.Compose([*moved, *plain]),
        contrast=options.nce_k if method == "crd" else 0,
        mode=options.mode if method == "crd" else "exact",
        with_index=method is not None,
        files=train.files,
        class_folders=folders,
    )
    test_set = FolderImages(test_images, test.labels.numpy(), classes, transforms.Compose(plain), files=test.files)
    train_loader: DataLoader[Any] = DataLoader(train_set, batch_size=batch_size, shuffle=True, num_workers=workers)
    test_loader: DataLoader[Any] = DataLoader(test_set, batch_size=max(1, batch_size // 2), num_workers=workers // 2)
    _remember(options, train_loader, test_loader)
    return without_single_row(train_loader), test_loader, len(train_set), len(classes)


def _remember(options: Any, train: DataLoader[Any], test: DataLoader[Any]) -> None:
    """Leave beside the checkpoints of `train_teacher.py` what they were trained on; a student's run does so itself."""
    folder = getattr(options, "save_folder", "")
    if folder and not hasattr(options, "distill"):
        data = LoaderData(train, getattr(test.dataset, "transform", None), test.dataset)
        RunFolder.inside(folder).create().write_data(data.identity)


def _decode(part: FolderPart, workers: int) -> np.ndarray:
    pixels = decode_files(part.files, SIDE, resize=True, num_workers=workers)
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


def _statistics(images: np.ndarray) -> tuple[list[float], list[float]]:
    """Return mean and standard deviation per channel, of values in [0, 1], without a copy of the images as floats."""
    levels = np.arange(256) / 255
    shares = [np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size for c in range(3)]
    means = [float(share @ levels) for share in shares]
    return means, [float(np.sqrt(share @ (levels - mean) ** 2)) for share, mean in zip(shares, means, strict=True)]
