"""Read labels, files and normalisation from a host's torchvision-style data sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tllm_plugin.core.data_identity import DataIdentity, DataPart
from tllm_plugin.core.errors import DataError
from tllm_plugin.data.identity import part_of

# Attributes of data sets in torchvision and the hosts that hold labels, and lists of (file, label).
_LABELS = ("targets", "labels")
_LISTS = ("samples", "imgs")


def labels_of(dataset: Any) -> Tensor | None:
    """Return the labels (N,) int64 of a data set; None if they are not accessible."""
    found = next((getattr(dataset, name) for name in _LABELS if hasattr(dataset, name)), None)
    return None if found is None else torch.as_tensor(np.asarray(found), dtype=torch.int64)


def shown_identity(train: Any, test: Any, class_names: Sequence[str], transform: Any) -> DataIdentity:
    """Return the identity of a host's data, as far as the data sets reveal it.

    Args:
        train: Training data of the host.
        test: Test data of the host; None without any.
        class_names: (C,) names.
        transform: Transform of the test images.
    """
    mean, std, size = _shown_by(transform)
    return DataIdentity(
        class_names=tuple(class_names),
        train=_part(train, len(class_names)),
        test=_part(test, len(class_names)),
        image_size=size or _side(train),
        mean=mean,
        std=std,
        class_folders=tuple(map(str, getattr(train, "class_folders", ()))),
    )


def _part(dataset: Any, num_classes: int) -> DataPart:
    labels = labels_of(dataset)
    if labels is None or not len(labels) or int(labels.min()) < 0 or int(labels.max()) >= num_classes:
        return DataPart()
    return part_shown(dataset, labels, num_classes)


def part_shown(dataset: Any, labels: Tensor, num_classes: int) -> DataPart:
    """Return the record of a data set with known labels: of its files or its images, as far as it shows them.

    Args:
        dataset: The data set.
        labels: (N,) int64, in [0, num_classes).
        num_classes: C.
    """
    images = getattr(dataset, "data", None)
    decoded = isinstance(images, np.ndarray | Tensor) and len(images) == len(labels)
    try:
        return part_of(labels, num_classes, files=_files(dataset, len(labels)), images=images if decoded else None)
    except DataError:  # The names are not files, but for example names in an archive.
        return part_of(labels, num_classes, images=images if decoded else None)


def _files(dataset: Any, count: int) -> list[str]:
    listed = next((getattr(dataset, name) for name in _LISTS if hasattr(dataset, name)), None)
    if isinstance(listed, list | tuple):
        named = [item[0] for item in listed if isinstance(item, list | tuple) and item]
    else:
        found = getattr(dataset, "files", None)
        named = list(found) if isinstance(found, list | tuple) else []
    files = [file for file in named if isinstance(file, str)]
    return files if len(files) == count else []


def _side(dataset: Any) -> int:
    """Return the side in pixels of square images held in memory as (N, H, W, ...); 0 otherwise."""
    shape: tuple[int, ...] = tuple(getattr(getattr(dataset, "data", None), "shape", ()))
    return int(shape[1]) if len(shape) in (3, 4) and shape[1] == shape[2] else 0


def _shown_by(transform: Any) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Return mean, standard deviation and image size of a transform; empty and 0 if unknown."""
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    size = 0
    for step in getattr(transform, "transforms", ()):
        kind = type(step).__name__
        if kind == "Normalize":
            mean, std = (tuple(np.atleast_1d(np.asarray(x, dtype=float)).tolist()) for x in (step.mean, step.std))
        elif kind == "CenterCrop":
            sides = step.size if isinstance(step.size, tuple | list) else [step.size]
            size = int(sides[0]) if len(set(sides)) == 1 else 0
    return mean, std, size
