"""Split a host's training `DataLoader` into training rows and hold-out."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler, RandomSampler, SequentialSampler, Subset

from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.worker_errors import plain_errors
from tllm_plugin.data.bundle import check_several_classes
from tllm_plugin.hosts.shown_data import labels_of, shown_identity
from tllm_plugin.hosts.single_rows import without_single_row

# Attributes of data sets in torchvision and the hosts that hold the class names.
_NAMES = ("classes", "class_names")


class LoaderData:
    """`TrainingData` for a host with a map-style data set that has labels and a transform.

    Samples keep their indices in the full data set, which memory banks and logs of a host use.

    Args:
        loader: Loader of `(image, label, index, ...)`; its data set has `targets` (or `labels`) and `transform`.
        test_transform: Transform of the hold-out images.
        test_set: The host's test data, for the identity of the run's data.

    Raises:
        ConfigError: The loader or its data set has an unsupported type.
        DataError: The images have only one class.
    """

    def __init__(self, loader: Any, test_transform: Any, test_set: Any = None) -> None:
        self.loader = loader
        self.dataset = getattr(loader, "dataset", None)
        self.test_transform = test_transform
        self.test_set = test_set
        labels = labels_of(self.dataset)
        if labels is None or not hasattr(self.dataset, "transform"):
            raise ConfigError(
                "Expected the host's training data to have `targets` and `transform` as torchvision's have, but got a "
                f"{type(self.dataset).__name__}"
            )
        known = RandomSampler | SequentialSampler | DistributedSampler
        if not isinstance(loader.sampler, known) or loader.batch_size is None:
            raise ConfigError(
                "Expected the host's training loader to take all samples, in order or shuffled, but got one with a "
                f"{type(loader.sampler).__name__}"
            )
        self.labels: Tensor = labels
        check_several_classes(self.labels, "the host's training images")
        names = next((getattr(self.dataset, name) for name in _NAMES if hasattr(self.dataset, name)), None)
        classes = int(self.labels.max()) + 1
        self.class_names: tuple[str, ...] = tuple(map(str, names if names is not None else range(classes)))

    @cached_property
    def identity(self) -> DataIdentity:
        """Identity of the data, as far as the host's data sets reveal it."""
        return shown_identity(self.dataset, self.test_set, self.class_names, self.test_transform)

    def train_loader(self, indices: Tensor) -> Any:
        """Return the host's loader with its options, restricted to `indices`; no batch has a single row."""
        keep_contrast_inside(self.dataset, indices)
        loader = self.loader
        options: dict[str, Any] = {
            name: getattr(loader, name)
            for name in (
                *("batch_size", "num_workers", "pin_memory", "drop_last", "collate_fn", "timeout", "worker_init_fn"),
                *("multiprocessing_context", "generator", "prefetch_factor", "persistent_workers"),
            )
        }
        rows: Dataset[Any] = Subset(self.dataset, indices.tolist())  # type: ignore[arg-type]
        if isinstance(loader.sampler, DistributedSampler):
            # The host's loop calls `set_epoch` of the sampler.
            options["sampler"] = _of_rows(loader.sampler, rows)
        shuffle = isinstance(loader.sampler, RandomSampler)
        return without_single_row(DataLoader(rows, shuffle=shuffle, **options))  # type: ignore[arg-type]

    def holdout_loader(self, indices: Tensor) -> Any:
        """Return batches `(image, label)` of `indices` without augmentation, in order; no global random number is
        drawn."""
        return _InOrder(
            DataLoader(
                Subset(_untouched(self.dataset, self.test_transform), indices.tolist()),
                batch_size=max(self.loader.batch_size, 100),
                num_workers=self.loader.num_workers,
                generator=torch.Generator(),
            )
        )


def whole(loader: Any) -> Any:
    """Return a loader over all test rows in order, also if the host's loader is restricted to one rank."""
    if not isinstance(getattr(loader, "sampler", None), DistributedSampler):
        return loader
    return DataLoader(
        loader.dataset, batch_size=loader.batch_size, num_workers=loader.num_workers, collate_fn=loader.collate_fn
    )


def _of_rows(sampler: DistributedSampler[Any], rows: Dataset[Any]) -> DistributedSampler[Any]:
    """Return a sampler of this rank's part of `rows` with the options of the host's sampler."""
    return DistributedSampler(
        rows,
        num_replicas=sampler.num_replicas,
        rank=sampler.rank,
        shuffle=sampler.shuffle,
        seed=sampler.seed,
        drop_last=sampler.drop_last,
    )


class _InOrder:
    """Data set that yields only image and label."""

    def __init__(self, loader: DataLoader[Any]) -> None:
        self.loader = loader

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        with plain_errors():
            for image, label, *_ in self.loader:
                yield image.float(), label


def _untouched(dataset: Any, transform: Any) -> Dataset[Any]:
    """Return a shallow copy of a data set with another transform."""
    view = copy.copy(dataset)
    view.transform = transform
    if getattr(view, "transforms", None) is not None:
        view.transforms = type(view.transforms)(transform, getattr(view, "target_transform", None))
    if hasattr(view, "is_sample"):
        view.is_sample = False  # Without contrastive samples.
    found: Dataset[Any] = view
    return found


def keep_contrast_inside(dataset: Any, indices: Tensor) -> None:
    """Remove all samples except `indices` from the contrastive lists of a CRD data set, in place.

    In place, because at ImageNet scale two copies of these lists do not fit in memory.
    """
    inside = np.zeros(len(dataset), dtype=bool)
    inside[indices.numpy()] = True
    for name in ("cls_positive", "cls_negative"):
        lists = getattr(dataset, name, None)
        if lists is None:
            continue
        filtered = list(lists)
        setattr(dataset, name, filtered)
        for index, members in enumerate(filtered):
            filtered[index] = members[inside[members]]
