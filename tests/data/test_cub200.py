"""CUB-200-2011 from a small folder of the official layout: the split, the augmentation, and broken folders."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from torchvision import transforms

from tests.data.official_cub200 import CLASSES, make_official
from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.data import load_data
from tllm_plugin.data.randomness import derived_seed


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_official(tmp_path_factory.mktemp("cub"))


@pytest.mark.parametrize("inside", [True, False])
def test_official_split(official: Path, inside: bool) -> None:
    data = load_data("cub200", str(official if inside else official.parent), num_workers=0)
    assert data.class_names == ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross")
    assert data.train_labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and data.test_labels.tolist() == [0, 1, 2]
    assert (data.image_size, data.in_channels) == (224, 3)
    (batch,) = data.eval_loader(None, batch_size=8, device="cpu", split="test")
    assert batch[0].shape == (3, 3, 224, 224) and batch[1].tolist() == [0, 1, 2]


def test_training_images_are_cropped_mirrored_and_brightened(official: Path) -> None:
    data = load_data("cub200", str(official), image_size=40, num_workers=0)
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(40),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(brightness=0.4),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    files = [line.split(" ")[1] for line in (official / "images.txt").read_text().splitlines()]
    train = [file for file, part in zip(files, [1, 0, 1, 1] * len(CLASSES), strict=True) if part]
    loader = data.train_loader(None, batch_size=9, seed=3, device="cpu")
    loader.set_epoch(5)
    ((images, targets, indices),) = loader
    brightness = set()
    for image, target, index in zip(images, targets.tolist(), indices.tolist(), strict=True):
        torch.manual_seed(derived_seed(3, 5, index))
        picture = Image.open(official / "images" / train[index]).convert("RGB")
        assert torch.equal(image, transform(picture))
        assert train[index].startswith(f"00{target + 1}")
        brightness.add(round(float(image.mean()), 2))
    assert len(brightness) > 3


@pytest.fixture
def copied(official: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(official, tmp_path / "CUB_200_2011"))


def refused(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        load_data("cub200", str(root))
    return str(caught.value)


def test_half_extracted_folder(copied: Path) -> None:
    shutil.rmtree(copied / "images" / CLASSES[2])
    message = refused(copied)
    assert "to hold the 12 images of images.txt, but 4 are missing, 003.Sooty_Albatross/Bird_0000_9.jpg" in message
    assert "extract the archive again" in message


@pytest.mark.parametrize("name", ["classes.txt", "image_class_labels.txt", "train_test_split.txt"])
def test_missing_list(copied: Path, name: str) -> None:
    (copied / name).unlink()
    message = refused(copied)
    assert "to hold the four lists classes.txt, images.txt, image_class_labels.txt, train_test_split.txt" in message
    assert f"but reading {name} failed" in message


def test_lists_that_contradict_each_other(copied: Path) -> None:
    labels = copied / "image_class_labels.txt"
    lines = labels.read_text().splitlines()
    labels.write_text("\n".join(lines[:-2]))
    assert "line for each of the 12 images of images.txt, but it has 10" in refused(copied)
    labels.write_text("\n".join(["1 4", *lines[1:]]))
    assert "numbers from 1 to 3 in" in refused(copied) and "line 1 has '4'" in refused(copied)
    labels.write_text("\n".join(lines[1:]))
    assert "line 1 of" in refused(copied) and "to be `1 <value>`, but got '2 1'" in refused(copied)
    labels.write_text("")
    assert "but it is empty" in refused(copied)


@pytest.mark.parametrize("path", ["", "no/such/folder"])
def test_no_folder(path: str) -> None:
    with pytest.raises(ConfigError, match=r"`path` to be the folder CUB_200_2011 of CUB-200-2011, .*cub200.py"):
        load_data("cub200", path)


def test_draws_no_global_random_numbers(official: Path) -> None:
    torch.manual_seed(0)
    random.seed(0)
    states = torch.get_rng_state(), random.getstate()
    data = load_data("cub200", str(official), image_size=16, num_workers=0)
    list(data.train_loader(None, batch_size=4, seed=0, device="cpu"))
    assert torch.equal(torch.get_rng_state(), states[0]) and random.getstate() == states[1]
