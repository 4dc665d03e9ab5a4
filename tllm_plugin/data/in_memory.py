"""Data sets of small images that are kept as uint8 on the training device and augmented there batch by batch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tllm_plugin.core.data_identity import DataPart
from tllm_plugin.core.errors import DataError
from tllm_plugin.data.augment import ShiftFlip, channel_statistics, normalise, per_channel
from tllm_plugin.data.bundle import DataBundle, Split
from tllm_plugin.data.identity import part_of
from tllm_plugin.data.image_set import ImageSet
from tllm_plugin.data.loaders import EvalLoader, TrainLoader
from tllm_plugin.data.randomness import derived_generator

#: Batches are augmented together up to so many values: with tiny images a call takes longer than its work. A GPU has to
#: be kept busy by larger pieces (64 MB of float32) than fit into a CPU's cache.
_VALUES_TOGETHER = 1 << 18
_VALUES_TOGETHER_ON_GPU = 1 << 24


@dataclass(frozen=True, eq=False, kw_only=True)
class InMemoryBundle(DataBundle):
    """Data set whose images are tensors; create it with `in_memory_bundle`.

    Args:
        train: Training images and labels, on the CPU.
        test: Test images and labels, on the CPU.
        augmentation: Augmentation of training images.
        train_files: Files of the training images; empty if images have no files.
        test_files: Files of the test images; empty if images have no files.
    """

    train: ImageSet
    test: ImageSet
    augmentation: ShiftFlip
    train_files: tuple[str, ...] = ()
    test_files: tuple[str, ...] = ()
    _copies: dict[tuple[Split, torch.device], ImageSet] = field(default_factory=dict, init=False, repr=False)

    def resident(self, split: Split, device: torch.device) -> ImageSet:
        """Return a part on `device`; it is copied on first use, and all loaders share the copy."""
        # "cuda" and "cuda:0" are the same device but compare unequal; a tensor has the full name.
        key = (split, torch.empty(0, device=device).device)
        if key not in self._copies:
            self._copies[key] = (self.train if split == "train" else self.test).to(device)
        return self._copies[key]

    def limited(self, views: int) -> InMemoryBundle:
        return replace(self, augmentation=replace(self.augmentation, views=views)) if views else self

    def _part(self, split: Split) -> DataPart:
        images, files = (self.train, self.train_files) if split == "train" else (self.test, self.test_files)
        return part_of(images.labels, self.num_classes, files=files, images=images.images.permute(0, 2, 3, 1))

    def _train_loader(self, rows: Tensor, *, batch_size: int, seed: int, device: torch.device) -> TrainLoader:
        return _TrainLoader(self, rows, device=device, batch_size=batch_size, seed=seed)

    def _eval_loader(self, rows: Tensor, *, batch_size: int, device: torch.device, split: Split) -> EvalLoader:
        return _EvalLoader(self, split, rows, device=device, batch_size=batch_size)


def in_memory_bundle(
    class_names: tuple[str, ...],
    train: ImageSet,
    test: ImageSet,
    *,
    flip: bool,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    train_files: tuple[str, ...] = (),
    test_files: tuple[str, ...] = (),
) -> InMemoryBundle:
    """Create a bundle from training and test sets of square images of one size.

    Training images are shifted by up to an eighth of their size in each direction: 4 pixels for 32 x 32 (as is usual
    for CIFAR), 8 for 64 x 64, 1 for 8 x 8.

    Args:
        class_names: Names of the classes.
        train: Training images.
        test: Test images.
        flip: Whether to mirror training images at random.
        mean: Mean per channel of pixels in [0, 1]; None computes it from all training images.
        std: Standard deviation per channel of pixels in [0, 1]; None computes it from all training images.
        train_files: Files of the training images; empty if images have no files.
        test_files: Files of the test images; empty if images have no files.

    Raises:
        DataError: There is no training image, or images are not square or of different sizes.
    """
    count, channels, image_size, width = train.images.shape
    if count == 0:
        raise DataError("Expected `train` to hold at least one image, but it holds none")
    if width != image_size or test.images.shape[1:] != train.images.shape[1:]:
        raise DataError(
            "Expected `train` and `test` to hold square images of one size, but got (C, H, W) of "
            f"{tuple(train.images.shape[1:])} and {tuple(test.images.shape[1:])}"
        )
    if mean is None or std is None:
        mean, std = channel_statistics(train.images)
    return InMemoryBundle(
        class_names=class_names,
        in_channels=channels,
        image_size=image_size,
        mean=mean,
        std=std,
        train_labels=train.labels,
        test_labels=test.labels,
        train=train,
        test=test,
        augmentation=ShiftFlip(padding=image_size // 8, flip=flip),
        train_files=train_files,
        test_files=test_files,
    )


class _TrainLoader(TrainLoader):
    def __init__(
        self,
        bundle: InMemoryBundle,
        rows: Tensor,
        *,
        device: torch.device,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed)
        self._bundle = bundle
        self._device = device

    def _batches(self, batches: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        bundle, device = self._bundle, self._device
        mean, std = per_channel(bundle.mean, device), per_channel(bundle.std, device)
        data = bundle.resident("train", device)
        # Move all random numbers of the epoch to the device here, so that the loop below does not wait for them.
        draws = bundle.augmentation.draw(len(data), derived_generator(self._seed, epoch, "augmentation")).to(device)
        values = _VALUES_TOGETHER if device.type == "cpu" else _VALUES_TOGETHER_ON_GPU
        together = max(1, values // (self._batch_size * data.images[0].numel()))
        on_device = _on_device(batches, device)
        for start in range(0, len(on_device), together):
            several = list(on_device[start : start + together])
            index = torch.cat(several)
            # index_select copies whole images and is an order of magnitude faster on a CPU than images[index].
            raw = bundle.augmentation.apply(data.images.index_select(0, index), draws.index_select(0, index))
            parts = normalise(raw, mean, std), data.labels.index_select(0, index), index
            sizes = [len(rows) for rows in several]
            yield from zip(*(part.split(sizes) for part in parts), strict=True)


class _EvalLoader(EvalLoader):
    def __init__(
        self, bundle: InMemoryBundle, split: Split, rows: Tensor, *, device: torch.device, batch_size: int
    ) -> None:
        super().__init__(rows, batch_size=batch_size)
        self._bundle = bundle
        self._split: Split = split
        self._device = device

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        mean, std = per_channel(self._bundle.mean, self._device), per_channel(self._bundle.std, self._device)
        data = self._bundle.resident(self._split, self._device)
        for index in _on_device(self._own(self._rows), self._device):
            yield normalise(data.images.index_select(0, index), mean, std), data.labels.index_select(0, index)


def _on_device(batches: Sequence[Tensor], device: torch.device) -> Sequence[Tensor]:
    """Move the rows of all batches to the device in one transfer."""
    return torch.cat(list(batches)).to(device).split([len(rows) for rows in batches]) if batches else ()
