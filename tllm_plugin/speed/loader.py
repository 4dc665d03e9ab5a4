"""Make the batches of a stock CIFAR loader on the training device, with the images that the loader itself would yield.

The random numbers of the loader's worker processes are drawn in its place, so that rows, crops and flips are the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Subset, default_collate
from torchvision import transforms

from tllm_plugin.data.augment import ShiftFlip, normalise, per_channel

#: Items that are compared with the data set's own before it is replaced.
_COMPARED = 6


class NotRecognised(Exception):
    """The loader has to stay; the message says why."""


class DeviceLoader:
    """Batches `(image, target, index)` on a device, equal to those of the given loader.

    Args:
        loader: A shuffled or ordered loader of a data set as torchvision's CIFAR10.
        device: Device of the batches.
        views: Outcomes of the augmentation that each image may have; 0 for all.

    Raises:
        NotRecognised: The loader, its data set or its transforms are not what is known.
    """

    def __init__(self, loader: DataLoader[Any], device: torch.device, views: int = 0) -> None:
        self.loader = loader
        _check_loader(loader)
        dataset, self._rows = _flattened(loader.dataset)
        self.augmentation, self._flip_probability, mean, std = _read_transforms(dataset)
        images, labels = getattr(dataset, "data", None), getattr(dataset, "targets", None)
        if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 4:
            raise NotRecognised("its images are not an array in memory")
        self._images = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous().to(device)
        self._labels = torch.as_tensor(labels, dtype=torch.int64)
        self._mean, self._std = per_channel(mean, device), per_channel(std, device)
        self.device = device
        self._check_items(loader.dataset)
        self.augmentation = replace(self.augmentation, views=views)

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)  # Hosts read `dataset`, `sampler` or `batch_size`.

    def __iter__(self) -> Iterator[list[Tensor]]:
        loader = self.loader
        batches = iter(loader.batch_sampler)  # type: ignore[arg-type]
        seed = int(torch.empty((), dtype=torch.int64).random_(generator=loader.generator))
        workers = [Generator().manual_seed(_wrapped(seed + place)) for place in range(loader.num_workers)]
        for number, places in enumerate(batches):
            yield self._batch(places, workers[number % len(workers)] if workers else None)

    def _batch(self, places: list[int], generator: Generator | None) -> list[Tensor]:
        rows = self._rows[torch.tensor(places)]
        draws = torch.tensor([self._draw(generator) for _ in places])
        draws = self.augmentation.limited(draws, rows)
        images = self._images.index_select(0, rows.to(self.device, non_blocking=True))
        images = self.augmentation.apply(images, draws.to(self.device, non_blocking=True))
        images = normalise(images, self._mean, self._std)
        return [images, *(part.to(self.device, non_blocking=True) for part in (self._labels[rows], rows))]

    def _draw(self, generator: Generator | None) -> tuple[int, int, int]:
        """Draw top, left and flip as torchvision's transforms do for one image."""
        top = left = flip = 0
        if self.augmentation.padding:
            edges = 2 * self.augmentation.padding + 1
            top = int(torch.randint(0, edges, size=(1,), generator=generator))
            left = int(torch.randint(0, edges, size=(1,), generator=generator))
        if self.augmentation.flip:
            flip = int(torch.rand(1, generator=generator) < self._flip_probability)
        return top, left, flip

    def _check_items(self, dataset: Any) -> None:
        """Compare batches with items of the data set, and the random numbers that both leave behind."""
        places = torch.linspace(0, len(dataset) - 1, min(_COMPARED, len(dataset))).long().tolist()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            expected = default_collate([dataset[place] for place in places])
            left = torch.get_rng_state()
            torch.manual_seed(0)
            found = self._batch(places, None)
            same = len(expected) == len(found) and torch.equal(left, torch.get_rng_state())
        if not same or not all(
            isinstance(one, Tensor) and one.dtype == other.dtype and torch.equal(one, other.cpu())
            for one, other in zip(expected, found, strict=True)
        ):
            raise NotRecognised("its items are not what its images and transforms give")


def on_device(loader: Any, device: torch.device, views: int = 0) -> tuple[Any, str]:
    """Return a `DeviceLoader` and "", or the loader itself and the reason why it stays."""
    try:
        return DeviceLoader(loader, device, views), ""
    except NotRecognised as reason:
        return loader, str(reason)


def _wrapped(seed: int) -> int:
    # `manual_seed` accepts what fits into 64 bits, signed or not; worker processes add to a signed number.
    return seed % 2**64


def _flattened(dataset: Any) -> tuple[Any, Tensor]:
    """Return the data set behind subsets, and the places in it."""
    rows = torch.arange(len(dataset))
    while isinstance(dataset, Subset):
        rows = torch.as_tensor(list(dataset.indices), dtype=torch.int64)[rows]
        dataset = dataset.dataset
    return dataset, rows


def _check_loader(loader: Any) -> None:
    if type(loader) is not DataLoader or loader.batch_sampler is None:
        raise NotRecognised(f"it is a {type(loader).__name__} of another kind")
    if loader.collate_fn is not default_collate:
        raise NotRecognised("it puts batches together by a function of its own")
    if loader.worker_init_fn is not None or loader.persistent_workers:
        raise NotRecognised("its worker processes are set up in a way of their own")
    if not getattr(loader, "in_order", True):
        raise NotRecognised("its batches come in no fixed order")


def _read_transforms(dataset: Any) -> tuple[ShiftFlip, float, Any, Any]:
    """Return augmentation, probability of a flip, mean and standard deviation."""
    composed = getattr(dataset, "transform", None)
    steps = list(composed.transforms) if isinstance(composed, transforms.Compose) else []
    kinds = [type(step) for step in steps]
    padding, probability = 0, 0.0
    if kinds[:1] == [transforms.RandomCrop]:
        padding = _padding_of(steps.pop(0), dataset)
    if steps and type(steps[0]) is transforms.RandomHorizontalFlip:
        probability = float(steps.pop(0).p)
    if [type(step) for step in steps] != [transforms.ToTensor, transforms.Normalize]:
        names = ", ".join(kind.__name__ for kind in kinds) or type(composed).__name__
        raise NotRecognised(f"its transforms are {names}")
    return ShiftFlip(padding, probability > 0), probability, steps[1].mean, steps[1].std


def _padding_of(crop: Any, dataset: Any) -> int:
    size = tuple(getattr(dataset, "data", np.zeros((1, 0, 0, 1))).shape[1:3])
    usual = crop.fill == 0 and crop.padding_mode == "constant" and not crop.pad_if_needed
    if tuple(crop.size) != size or not usual or not isinstance(crop.padding, int) or crop.padding < 1:
        raise NotRecognised(f"its transforms have {crop}")
    return int(crop.padding)
