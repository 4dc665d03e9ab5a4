"""Interface of a data set to a host, whether its images are in memory or on disk."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from tllm_plugin.core.data_identity import DataIdentity, DataPart
from tllm_plugin.core.errors import ConfigError, DataError, unknown_name
from tllm_plugin.data.identity import part_of
from tllm_plugin.data.loaders import EvalLoader, TrainLoader
from tllm_plugin.data.shards import WHOLE, Shard

Split = Literal["train", "test"]


@dataclass(frozen=True, eq=False, kw_only=True)
class DataBundle(ABC):
    """Training and test part of a data set, with loaders for any subset.

    Args:
        class_names: Readable names of the classes, in label order.
        in_channels: Number of channels of an image.
        image_size: Height and width of an image at the input of the network, in pixels.
        mean: Mean per channel, subtracted from pixels in [0, 1].
        std: Standard deviation per channel, by which pixels are divided afterwards.
        train_labels: (N,) int64 on the CPU.
        test_labels: (M,) int64 on the CPU.
        class_folders: Names of the class folders, in label order; empty if classes have no folders.
        order_stated: Whether the order of the class folders was given explicitly.

    Raises:
        DataError: Labels have a wrong shape, dtype or range, or all training images have one class.
    """

    class_names: tuple[str, ...]
    in_channels: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    train_labels: Tensor
    test_labels: Tensor
    class_folders: tuple[str, ...] = ()
    order_stated: bool = False

    def __post_init__(self) -> None:
        for name, labels in (("train_labels", self.train_labels), ("test_labels", self.test_labels)):
            if labels.ndim != 1 or labels.dtype != torch.int64:
                raise DataError(
                    f"Expected `{name}` to be (N,) int64, but got {tuple(labels.shape)} {_dtype_name(labels)}"
                )
            _check_range(name, labels, self.num_classes, DataError)
        check_several_classes(self.train_labels, "the training images")

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    @cached_property
    def identity(self) -> DataIdentity:
        """Identity of the data, stored with every run.

        Raises:
            DataError: A file is missing.
        """
        return DataIdentity(
            class_names=tuple(self.class_names),
            train=self._part("train"),
            test=self._part("test"),
            image_size=self.image_size,
            mean=tuple(self.mean),
            std=tuple(self.std),
            class_folders=tuple(self.class_folders),
        )

    def normalised(self, mean: Sequence[float], std: Sequence[float]) -> DataBundle:
        """Return the same data with another normalisation; empty arguments keep the present values.

        Raises:
            ConfigError: The number of values differs from the number of channels, a value is not finite, or a standard
                deviation is not above 0.
        """
        if not mean and not std:
            return self
        for name, values, low in (("mean", mean, -math.inf), ("std", std, 0.0)):
            numbers = len(values) == self.in_channels and all(math.isfinite(value) for value in values)
            if not numbers or any(value <= low for value in values):
                kind = "finite numbers" if name == "mean" else "numbers above 0"
                raise ConfigError(f"Expected `{name}` to be {self.in_channels} {kind}, but got {list(values)}")
        return replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, std)))

    def limited(self, views: int) -> DataBundle:
        """Return the same data with at most `views` outcomes of the augmentation per image; 0 for all.

        Raises:
            ConfigError: The images are augmented one by one by other transforms.
        """
        if not views:
            return self
        raise ConfigError(f"Expected images in memory for {views} outcomes of the augmentation, but they are streamed")

    def _part(self, split: Split) -> DataPart:
        """Return the identity of a part, by default from its labels only."""
        return part_of(self.train_labels if split == "train" else self.test_labels, self.num_classes)

    def train_loader(
        self,
        indices: Tensor | None,
        *,
        batch_size: int,
        seed: int,
        device: torch.device | str,
        shard: Shard = WHOLE,
        least_rows: int = 1,
    ) -> TrainLoader:
        """Return a loader of shuffled, augmented batches of the training part.

        Args:
            indices: (K,) int64, positions in the training part; None for all.
            batch_size: Number of images per batch over all shards.
            seed: Seed of order and augmentation.
            device: Device of the batches.
            shard: Shard whose rows of every batch to yield. Batches and augmentation do not depend on the number of
                shards, except for a last batch that is too small for it.
            least_rows: A last batch with fewer rows per shard is merged into the batch before it; 2 if BatchNorm is
                trained, which may fail on a single row.

        Raises:
            ConfigError: An index or the batch size is out of range, there are no indices, or a batch has fewer rows
                than there are shards.
        """
        _check_batch_size(batch_size)
        rows = _checked_rows(indices, len(self.train_labels), "training images")
        loader = self._train_loader(rows, batch_size=batch_size, seed=seed, device=torch.device(device))
        loader.restrict(shard, least_rows)
        return loader

    def eval_loader(
        self,
        indices: Tensor | None,
        *,
        batch_size: int,
        device: torch.device | str,
        split: Split,
        shard: Shard = WHOLE,
    ) -> EvalLoader:
        """Return a loader of batches in the order of `indices`, with the test-time transform.

        Args:
            indices: (K,) int64, positions in the part that `split` names, possibly empty; None for all.
            batch_size: Number of images per batch.
            device: Device of the batches.
            split: "test", or "train" for a hold-out, which is a part of the training images.
            shard: Shard whose batches to yield.

        Raises:
            ConfigError: The split is unknown, or an index or the batch size is out of range.
        """
        _check_batch_size(batch_size)
        if split == "train":
            rows = _checked_rows(indices, len(self.train_labels), "training images")
        elif split == "test":
            rows = _checked_rows(indices, len(self.test_labels), "test images")
        else:
            raise ConfigError(unknown_name("split", split, ("train", "test")))
        loader = self._eval_loader(rows, batch_size=batch_size, device=torch.device(device), split=split)
        loader.restrict(shard)
        return loader

    @abstractmethod
    def _train_loader(self, rows: Tensor, *, batch_size: int, seed: int, device: torch.device) -> TrainLoader:
        """Return the result of `train_loader` for checked arguments."""

    @abstractmethod
    def _eval_loader(self, rows: Tensor, *, batch_size: int, device: torch.device, split: Split) -> EvalLoader:
        """Return the result of `eval_loader` for checked arguments."""


def check_several_classes(labels: Tensor, what: str) -> None:
    """Raise an error if all images are of one class.

    Args:
        labels: (n,) int64; an empty tensor is accepted.
        what: Description of the images, for the message.

    Raises:
        DataError: All labels are the same.
    """
    if len(labels) and bool((labels == labels[0]).all()):
        raise DataError(
            f"Expected {what} to be of at least two classes, but all {len(labels)} are of class {labels[0]}"
        )


def _check_batch_size(batch_size: int) -> None:
    if batch_size < 1:
        raise ConfigError(f"Expected `batch_size` to be at least 1, but got {batch_size}")


def _checked_rows(indices: Tensor | None, count: int, what: str) -> Tensor:
    if indices is None:
        return torch.arange(count)
    if indices.ndim != 1 or indices.dtype != torch.int64:
        raise ConfigError(
            f"Expected `indices` to be (K,) int64, positions of {what}, "
            f"but got {tuple(indices.shape)} {_dtype_name(indices)}"
        )
    _check_range("indices", indices, count, ConfigError)
    return indices.cpu()


def _check_range(name: str, values: Tensor, limit: int, error: type[ConfigError] | type[DataError]) -> None:
    if len(values) == 0:
        return
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= limit:
        raise error(f"Expected `{name}` to be from 0 to {limit - 1}, but got {low} to {high}")


def _dtype_name(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")
