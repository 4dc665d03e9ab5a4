"""Batches that are made on the device against those of the loader itself: bit for bit, random numbers included."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Subset
from torchvision import transforms
from torchvision.datasets import CIFAR10

from tllm_plugin.data.augment import ShiftFlip
from tllm_plugin.speed.loader import DeviceLoader, NotRecognised, on_device

CPU = torch.device("cpu")
USUAL = (
    transforms.RandomCrop(32, padding=4),
    transforms.RandomHorizontalFlip(),
    transforms.ToTensor(),
    transforms.Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4)),
)


class Indexed(CIFAR10):
    """As both hosts' data sets: the place of an image comes with it."""

    def __init__(self, count: int = 50, steps: tuple[Any, ...] = USUAL) -> None:
        random = np.random.default_rng(0)
        self.data = random.integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)
        self.targets = random.integers(0, 10, count).tolist()
        self.transform, self.target_transform = transforms.Compose(list(steps)), None

    def __getitem__(self, index: int) -> Any:
        return *super().__getitem__(index), index

    def __len__(self) -> int:
        return len(self.data)


def loader(dataset: Any = None, **how: Any) -> DataLoader[Any]:
    rows = Subset(dataset or Indexed(), list(range(3, 46)))
    return DataLoader(rows, **{"batch_size": 8, "shuffle": True, **how})


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("steps", [USUAL, USUAL[1:], USUAL[2:], (USUAL[0], *USUAL[2:])])
def test_batches_are_those_of_the_loader(workers: int, steps: tuple[Any, ...]) -> None:
    theirs = loader(Indexed(steps=steps), num_workers=workers)
    ours = DeviceLoader(theirs, CPU)
    assert len(ours) == len(theirs) and ours.dataset is theirs.dataset and ours.batch_size == 8
    torch.manual_seed(7)
    for _ in range(2):  # Epochs.
        state = torch.get_rng_state()
        expected, left = list(theirs), torch.get_rng_state()
        torch.set_rng_state(state)
        found = list(ours)
        assert torch.get_rng_state().equal(left)
        for one, other in zip(expected, found, strict=True):
            assert all(a.equal(b) and a.dtype == b.dtype for a, b in zip(one, other, strict=True))


def test_every_outcome_is_torchvisions() -> None:
    dataset = Indexed(1)
    ours = DeviceLoader(DataLoader(dataset, batch_size=1), CPU)
    image = Image.fromarray(dataset.data[0])
    finish = transforms.Compose(list(USUAL[2:]))
    for top, left, flip in itertools.product(range(9), range(9), range(2)):
        cropped = transforms.functional.crop(transforms.functional.pad(image, 4), top, left, 32, 32)
        expected = finish(transforms.functional.hflip(cropped) if flip else cropped)
        ours._draw = lambda generator, found=(top, left, flip): found  # type: ignore[method-assign]
        assert ours._batch([0], None)[0][0].equal(expected)


def test_outcomes_are_drawn_uniformly() -> None:
    ours = DeviceLoader(loader(), CPU)
    torch.manual_seed(0)
    counts = Counter(ours._draw(None) for _ in range(162 * 50))
    assert len(counts) == 162
    chi_square = sum((count - 50) ** 2 / 50 for count in counts.values())
    assert chi_square < 161 + 4 * (2 * 161) ** 0.5


@pytest.mark.parametrize("views", [1, 4])
def test_views_limit_the_outcomes_of_an_image(views: int) -> None:
    augmentation = ShiftFlip(4, flip=True, views=views)
    every = torch.tensor(list(itertools.product(range(9), range(9), range(2))))
    seen = Counter()
    for row in range(200):
        found = {tuple(draw) for draw in augmentation.limited(every, torch.full((162,), row)).tolist()}
        assert len(found) <= views
        seen.update(found)
    assert len(seen) > 100, "the images' outcomes are different ones"
    top, left, flip = zip(*seen, strict=True)
    assert set(top) == set(left) == set(range(9)) and set(flip) == {0, 1}


class Greyed(Indexed):
    def __getitem__(self, index: int) -> Any:
        image, *others = super().__getitem__(index)
        return image.mean(0, keepdim=True).expand(3, -1, -1), *others


class Restless(Indexed):
    def __getitem__(self, index: int) -> Any:
        torch.rand(1)
        return super().__getitem__(index)


@pytest.mark.parametrize(
    "made, reason",
    [
        (lambda: loader(Greyed()), "not what its images"),
        (lambda: loader(Restless()), "not what its images"),
        (lambda: loader(Indexed(steps=(transforms.ColorJitter(), *USUAL))), "its transforms are ColorJitter"),
        (lambda: loader(Indexed(steps=(transforms.RandomCrop(32, padding=4, fill=9), *USUAL[1:]))), "RandomCrop"),
        (lambda: loader(num_workers=1, persistent_workers=True), "worker processes"),
        (lambda: loader(collate_fn=lambda items: items), "a function of its own"),
        (lambda: [1, 2], "of another kind"),
    ],
)
def test_anything_else_keeps_its_loader(made: Any, reason: str) -> None:
    theirs = made()
    found, why = on_device(theirs, CPU)
    assert found is theirs and reason in why and "\n" not in why
    with pytest.raises(NotRecognised):
        DeviceLoader(theirs, CPU)
