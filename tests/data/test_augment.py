"""Augmentation of batches against torchvision's functions, applied to one image at a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from tllm_plugin.data.augment import ShiftFlip, channel_statistics, crop_padded, mirror_rows, normalise, per_channel


def noise(count: int, channels: int = 3, height: int = 8, width: int = 8) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def draw(augmentation: ShiftFlip, count: int, seed: int = 0) -> Tensor:
    return augmentation.draw(count, torch.Generator().manual_seed(seed))


def one_by_one(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """Reference: pad, crop and mirror each image with torchvision."""
    height, width = images.shape[-2:]
    out = []
    for image, (top, left, mirrored) in zip(images, draws.tolist(), strict=True):
        image = TF.crop(TF.pad(image, [padding]), top, left, height, width)
        out.append(TF.hflip(image) if mirrored else image)
    return torch.stack(out)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("padding", [0, 1, 4])
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 8, 8), (3, 5, 9)], ids=str)
def test_equals_torchvision_one_image_at_a_time(shape: tuple[int, int, int], padding: int, flip: bool) -> None:
    augmentation = ShiftFlip(padding, flip)
    images = noise(64, *shape)
    draws = draw(augmentation, 64)
    augmented = augmentation.apply(images, draws)
    assert augmented.dtype == torch.uint8
    assert torch.equal(augmented, one_by_one(images, draws, padding))


def test_every_window_can_be_cut_out() -> None:
    images = noise(1).expand(25, -1, -1, -1)
    top, left = torch.cartesian_prod(torch.arange(5), torch.arange(5)).unbind(1)
    expected = one_by_one(images, torch.stack([top, left, torch.zeros(25, dtype=torch.int64)], dim=1), padding=2)
    assert torch.equal(crop_padded(images, top, left, padding=2), expected)


def test_the_middle_window_is_the_image() -> None:
    images = noise(4)
    middle = torch.full((4,), 3)
    assert torch.equal(crop_padded(images, middle, middle, padding=3), images)


def test_mirrors_the_marked_images_only() -> None:
    images = noise(3)
    mirrored = mirror_rows(images, torch.tensor([1, 0, 1]))
    assert torch.equal(mirrored, torch.stack([TF.hflip(images[0]), images[1], TF.hflip(images[2])]))


def test_leaves_its_input_alone() -> None:
    images = noise(16)
    before = images.clone()
    augmentation = ShiftFlip(padding=2, flip=True)
    augmentation.apply(images, draw(augmentation, 16))
    assert torch.equal(images, before)


def test_takes_an_empty_batch() -> None:
    augmentation = ShiftFlip(padding=2, flip=True)
    assert augmentation.apply(noise(0), draw(augmentation, 0)).shape == (0, 3, 8, 8)


def test_draws_every_shift_equally_often_and_mirrors_half() -> None:
    draws = draw(ShiftFlip(padding=2, flip=True), 20_000)
    windows = torch.bincount(5 * draws[:, 0] + draws[:, 1], minlength=25)
    # 800 are expected per window, with a standard deviation of 28; a fair coin's is 71 at 10,000.
    assert (windows - 800).abs().max() < 140
    assert abs(int(draws[:, 2].sum()) - 10_000) < 350


def test_draws_no_mirror_image_without_flip() -> None:
    assert not draw(ShiftFlip(padding=2, flip=False), 1_000)[:, 2].any()


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_equals_torchvision(channels: int) -> None:
    images, mean, std = noise(4, channels), [0.5, 0.4, 0.3][:channels], [0.2, 0.25, 0.3][:channels]
    expected = torch.stack([TF.normalize(TF.to_tensor(TF.to_pil_image(image)), mean, std) for image in images])
    device = torch.device("cpu")
    assert torch.equal(normalise(images, per_channel(mean, device), per_channel(std, device)), expected)


def test_channel_statistics_are_those_of_the_pixels() -> None:
    images = noise(50) // torch.tensor([1, 2, 3], dtype=torch.uint8).view(3, 1, 1)
    mean, std = channel_statistics(images)
    pixels = images.to(torch.float64).div(255).transpose(0, 1).flatten(1)
    assert mean == pytest.approx(pixels.mean(1).tolist(), rel=1e-12)
    assert std == pytest.approx(pixels.std(1, correction=0).tolist(), rel=1e-12)


def test_a_constant_channel_is_not_divided_by_zero() -> None:
    mean, std = channel_statistics(torch.full((2, 1, 4, 4), 51, dtype=torch.uint8))
    assert (mean, std) == (pytest.approx((0.2,)), (1.0,))
