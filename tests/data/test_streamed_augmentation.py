"""Training images that are read from disk go through torchvision's own random transforms, with known random numbers."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms
from torchvision.datasets import ImageFolder

from tllm_plugin.core.errors import DataError
from tllm_plugin.data import TrainLoader, load_data
from tllm_plugin.data.randomness import derived_seed

MakeFolder = Callable[..., Path]
IMAGE_SIZE = 72
SEED, EPOCH = 3, 6


@pytest.fixture
def root(make_folder: MakeFolder) -> Path:
    """Five images of 90 x 80 pixels in each of two classes, one of them of another size."""
    root = make_folder(per_class=5, size=(90, 80))
    noise = np.random.default_rng(1).integers(0, 256, (130, 60, 3), dtype=np.uint8)
    Image.fromarray(noise).save(root / "train" / "dog" / "2.png")
    return root


def train_loader(root: Path, indices: list[int], num_workers: int = 0) -> TrainLoader:
    bundle = load_data("imagefolder", str(root), image_size=IMAGE_SIZE, num_workers=num_workers)
    loader = bundle.train_loader(torch.tensor(indices), batch_size=4, seed=SEED, device="cpu")
    loader.set_epoch(EPOCH)
    return loader


@pytest.mark.parametrize("num_workers", [0, 2])
def test_equals_torchvision_with_the_same_random_numbers(root: Path, num_workers: int) -> None:
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(IMAGE_SIZE),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    reference = ImageFolder(str(root / "train"), transform)
    seen = 0
    for images, targets, indices in train_loader(root, [9, 7, 1, 0, 4, 3], num_workers):
        for image, target, index in zip(images, targets.tolist(), indices.tolist(), strict=True):
            torch.manual_seed(derived_seed(SEED, EPOCH, index))
            expected, label = reference[index]
            assert torch.equal(image, expected)
            assert target == label
            seen += 1
    assert seen == 6


def test_an_image_is_augmented_alike_whatever_else_is_trained_on(root: Path) -> None:
    def by_index(indices: list[int]) -> dict[int, torch.Tensor]:
        batches = list(train_loader(root, indices))
        return {int(row): image for images, _, rows in batches for image, row in zip(images, rows, strict=True)}

    whole, few = by_index(list(range(10))), by_index([4, 6])
    assert sorted(few) == [4, 6]
    assert all(torch.equal(few[index], whole[index]) for index in few)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_random_numbers_of_python_and_numpy_are_left_alone(root: Path, num_workers: int) -> None:
    def states() -> tuple[object, list[int]]:
        return random.getstate(), np.random.get_state(legacy=False)["state"]["key"].tolist()  # type: ignore[call-overload]

    before = states()
    list(train_loader(root, [0, 1, 2, 3, 4], num_workers))
    assert states() == before


def test_an_image_that_disappears_while_training_is_named(root: Path) -> None:
    loader = train_loader(root, [0])
    file = root / "train" / "cat" / "0.png"
    file.unlink()
    with pytest.raises(DataError, match=f"^Expected `{file}` to be an image, but reading it failed"):
        list(loader)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_message_for_a_damaged_image_holds_no_traceback(root: Path, num_workers: int) -> None:
    file = root / "train" / "dog" / "4.png"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match=f"^Expected `{file}` to be an image, but reading it failed") as caught:
        list(train_loader(root, [9, 0, 1], num_workers))
    assert "Traceback" not in str(caught.value)
