"""Data sets of large images, which worker processes read from disk in every epoch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.transforms import functional as TF

from tllm_plugin.core.data_identity import DataPart
from tllm_plugin.core.errors import DataError
from tllm_plugin.core.worker_errors import plain_errors
from tllm_plugin.data.augment import normalise, per_channel
from tllm_plugin.data.bundle import DataBundle, Split
from tllm_plugin.data.decode import read_rgb, stack_or_first_error
from tllm_plugin.data.identity import part_of
from tllm_plugin.data.loaders import EvalLoader, TrainLoader
from tllm_plugin.data.randomness import borrowed_cpu_rng, derived_seed

# Side of the test-time crop relative to the shorter side of the resized image: 224 of 256 pixels.
CENTRE_CROP_SHARE = 0.875

Transform = Callable[[Image.Image], Image.Image]


@dataclass(frozen=True, eq=False, kw_only=True)
class StreamedBundle(DataBundle):
    """Data set whose images stay on disk.

    Training images go through `RandomResizedCrop`, `RandomHorizontalFlip` and, if `brightness` is more than 0,
    `ColorJitter(brightness)`, each with random numbers of its own
    that depend on seed, epoch and position alone, so that the number of workers changes nothing. Test images are
    resized and cropped in the centre. Workers send uint8; the batch is normalised on its device.

    Args:
        train_files: One file per training label.
        test_files: One file per test label.
        num_workers: Number of processes that read and decode; 0 uses the calling process.
        brightness: Largest relative change of the brightness of training images.
    """

    train_files: tuple[str, ...]
    test_files: tuple[str, ...]
    num_workers: int
    brightness: float = 0.0

    def _part(self, split: Split) -> DataPart:
        labels, files = (
            (self.train_labels, self.train_files) if split == "train" else (self.test_labels, self.test_files)
        )
        return part_of(labels, self.num_classes, files=files)

    def _train_loader(self, rows: Tensor, *, batch_size: int, seed: int, device: torch.device) -> TrainLoader:
        return _TrainLoader(self, rows, device=device, batch_size=batch_size, seed=seed)

    def _eval_loader(self, rows: Tensor, *, batch_size: int, device: torch.device, split: Split) -> EvalLoader:
        return _EvalLoader(self, split, rows, device=device, batch_size=batch_size)


class _TrainLoader(TrainLoader):
    def __init__(
        self,
        bundle: StreamedBundle,
        rows: Tensor,
        *,
        device: torch.device,
        batch_size: int,
        seed: int,
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed)
        self._bundle = bundle
        self._device = device
        steps: list[Transform] = [transforms.RandomResizedCrop(bundle.image_size), transforms.RandomHorizontalFlip()]
        if bundle.brightness > 0:
            steps.append(transforms.ColorJitter(brightness=bundle.brightness))
        self._transform = transforms.Compose(steps)

    def _batches(self, batches: Sequence[Tensor], epoch: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        bundle = self._bundle
        images = _Images(bundle.train_files, self._transform, seed_key=(self._seed, epoch))
        for image, index in _read_batches(images, batches, bundle, self._device):
            target = bundle.train_labels[index].to(self._device, non_blocking=True)
            yield image, target, index.to(self._device, non_blocking=True)


class _EvalLoader(EvalLoader):
    def __init__(
        self, bundle: StreamedBundle, split: Split, rows: Tensor, *, device: torch.device, batch_size: int
    ) -> None:
        super().__init__(rows, batch_size=batch_size)
        self._bundle = bundle
        self._device = device
        self._files = bundle.train_files if split == "train" else bundle.test_files
        self._labels = bundle.train_labels if split == "train" else bundle.test_labels
        self._transform = transforms.Compose(
            [
                transforms.Resize(round(bundle.image_size / CENTRE_CROP_SHARE)),
                transforms.CenterCrop(bundle.image_size),
            ]
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        images = _Images(self._files, self._transform, seed_key=None)
        for image, index in _read_batches(images, self._own(self._rows), self._bundle, self._device):
            yield image, self._labels[index].to(self._device, non_blocking=True)


class _Images(Dataset["Tensor | DataError"]):
    """Data set of files as uint8 tensors (3, H, W), or the error of reading a file.

    Args:
        files: Image files.
        transform: Transform to an image of the final size.
        seed_key: Key of the transform's random numbers, together with a file's position; None if it draws none.
    """

    def __init__(self, files: tuple[str, ...], transform: Transform, seed_key: tuple[int, int] | None) -> None:
        self._files = files
        self._transform = transform
        self._seed_key = seed_key

    def __getitem__(self, index: int) -> Tensor | DataError:
        try:
            image = read_rgb(self._files[index])
        except DataError as error:
            return error
        if self._seed_key is None:
            image = self._transform(image)
        else:
            with borrowed_cpu_rng(derived_seed(*self._seed_key, index)):
                image = self._transform(image)
        return TF.pil_to_tensor(image)


def _read_batches(
    images: _Images, batches: Sequence[Tensor], bundle: StreamedBundle, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised images on `device` and their rows on the CPU, batch by batch."""
    mean, std = per_channel(bundle.mean, device), per_channel(bundle.std, device)
    loader = DataLoader(
        images,
        batch_sampler=[rows.tolist() for rows in batches],
        num_workers=min(bundle.num_workers, len(batches)),
        pin_memory=device.type == "cuda",
        collate_fn=stack_or_first_error,
        # Without a generator, a DataLoader draws the seeds of its workers from the global generator.
        generator=torch.Generator(),
    )
    with plain_errors():
        for batch, index in zip(loader, batches, strict=False):
            if isinstance(batch, DataError):
                raise batch
            yield normalise(batch.to(device, non_blocking=True), mean, std), index
