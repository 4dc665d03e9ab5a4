"""Image folders that are decoded into memory: what is read, how it is named, and which damage is reported how."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.datasets import ImageFolder

from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.data import DataBundle, load_data
from tllm_plugin.data.in_memory import InMemoryBundle

IMAGES = os.environ.get("TLLM_IMAGES", "")


def load(path: Path | str, image_size: int = 0, num_workers: int = 0) -> InMemoryBundle:
    bundle = load_data("imagefolder", str(path), image_size=image_size, num_workers=num_workers)
    assert isinstance(bundle, InMemoryBundle)
    return bundle


def test_reads_what_torchvisions_image_folder_reads(make_folder) -> None:
    root = make_folder()
    bundle = load(root)
    for part, images in (("train", bundle.train), ("val", bundle.test)):
        reference = ImageFolder(str(root / part))
        assert images.labels.tolist() == reference.targets
        for image, (expected, _) in zip(images.images, reference, strict=True):
            assert np.array_equal(image.permute(1, 2, 0).numpy(), np.asarray(expected))
    assert (bundle.class_names, bundle.in_channels, bundle.image_size) == (("cat", "dog"), 3, 16)
    assert bundle.augmentation.flip


def test_worker_processes_decode_the_same(make_folder) -> None:
    root = make_folder(per_class=260, size=(8, 8))
    assert torch.equal(load(root, num_workers=2).train.images, load(root).train.images)


def test_test_is_the_test_part_where_there_is_no_val(make_folder) -> None:
    root = make_folder(parts=("train", "test"))
    assert len(load(root).test) == 6
    shutil.copytree(root / "test", root / "val")
    (root / "val" / "cat" / "0.png").unlink()
    assert len(load(root).test) == 5


def test_other_modes_become_rgb(make_folder) -> None:
    root = make_folder()
    Image.new("L", (16, 16), 7).save(root / "train" / "cat" / "0.png")
    assert (load(root).train.images[0] == 7).all()


def test_files_that_are_no_images_and_files_beside_the_class_folders_are_ignored(make_folder) -> None:
    root = make_folder()
    (root / "train" / "cat" / "notes.txt").write_text("none")
    (root / "train" / "list.csv").write_text("none")
    assert len(load(root).train) == 6


def test_an_image_size_brings_images_of_all_sizes_to_one(make_folder) -> None:
    root = make_folder()
    Image.new("RGB", (40, 20), (1, 2, 3)).save(root / "val" / "dog" / "0.png")
    bundle = load(root, image_size=12)
    assert bundle.train.images.shape == (6, 3, 12, 12)
    assert (bundle.test.images[3] == torch.tensor([1, 2, 3]).view(3, 1, 1)).all()


@pytest.mark.parametrize("separator", ["\t", "  "])
def test_class_names_come_from_classes_txt(make_folder, separator: str) -> None:
    root = make_folder(classes=("n01", "n02", "n03", "n04"))
    lines = [f"n01{separator}crane", f"n02{separator}grey wolf", f"n03{separator}crane", "n09 unused", ""]
    (root / "classes.txt").write_text("\n".join(lines))
    assert load(root).class_names == ("crane (n01)", "grey wolf", "crane (n03)", "n04")


def test_a_classes_txt_that_is_not_text_is_refused(make_folder) -> None:
    root = make_folder()
    (root / "classes.txt").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(DataError, match="classes.txt` to be UTF-8 text, but reading it failed"):
        load(root)


@pytest.mark.parametrize("path", ["", "no/such/folder"])
def test_a_missing_path_is_refused(path: str) -> None:
    message = f"^Expected `path` to be a folder that holds `train` and `val`, but got '{path}'$"
    with pytest.raises(ConfigError, match=message):
        load(path)


@pytest.mark.parametrize(
    ("parts", "wanted"), [(("val",), "`train`"), (("train",), "`val` or `test`")], ids=["no train", "no val"]
)
def test_a_missing_part_is_refused(make_folder, parts: tuple[str, ...], wanted: str) -> None:
    root = make_folder(parts=parts)
    message = f"^Expected `{re.escape(str(root))}` to hold a folder {wanted}, but it holds {parts[0]}$"
    with pytest.raises(DataError, match=message):
        load(root)


def test_a_part_without_class_folders_is_refused(make_folder) -> None:
    root = make_folder(parts=("train",))
    (root / "val").mkdir()
    with pytest.raises(DataError, match=r"val` to hold one folder with images .* for each class, but it holds none$"):
        load(root)


def test_a_folder_without_images_is_no_class(make_folder) -> None:
    root = make_folder()
    (root / "train" / "emu").mkdir()
    assert load(root).class_names == ("cat", "dog")
    (root / "val" / "emu").mkdir()
    shutil.copy(root / "val" / "cat" / "0.png", root / "val" / "emu")
    with pytest.raises(DataError, match="train` to have the same class folders as `.*val`, but it lacks emu$"):
        load(root)


@pytest.mark.parametrize(("lacking", "other"), [("train", "val"), ("val", "train")])
def test_a_class_that_only_one_part_has_is_refused(make_folder, lacking: str, other: str) -> None:
    root = make_folder()
    shutil.rmtree(root / lacking / "dog")
    message = f"{lacking}` to have the same class folders as `.*{other}`, but it lacks dog$"
    with pytest.raises(DataError, match=message):
        load(root)


@pytest.mark.parametrize("image_size", [0, 16])
@pytest.mark.parametrize("kept", [0, 200], ids=["empty", "truncated"])
@pytest.mark.parametrize("name", ["train/cat/0.png", "val/dog/2.png"])
def test_a_damaged_image_is_named(make_folder, name: str, kept: int, image_size: int) -> None:
    file = make_folder() / name
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(DataError, match=f"^Expected `.*{name}` to be an image, but reading it failed: "):
        load(file.parents[2], image_size)


def test_a_damaged_image_is_named_by_a_worker_too(make_folder) -> None:
    root = make_folder(per_class=260, size=(8, 8))
    (root / "train" / "dog" / "7.png").write_text("no image")
    with pytest.raises(DataError, match="^Expected `.*dog/7.png` to be an image, but reading it failed: "):
        load(root, num_workers=2)


def test_images_of_different_sizes_are_refused_without_an_image_size(make_folder) -> None:
    root = make_folder()
    Image.new("RGB", (16, 20)).save(root / "val" / "cat" / "1.png")
    message = "to be 16 x 16 pixels like the first one, but `.*val/cat/1.png` is 16 x 20; set image_size"
    with pytest.raises(DataError, match=message):
        load(root)


@pytest.mark.parametrize("size", [(16, 12), (65, 65)], ids=str)
def test_large_or_oblong_images_need_an_image_size(make_folder, size: tuple[int, int]) -> None:
    message = f"square and at most 64 pixels wide .* `.*0.png` is {size[0]} x {size[1]}; set an image_size"
    with pytest.raises(DataError, match=message):
        load(make_folder(size=size))


@pytest.mark.parametrize("key", ["image_size", "num_workers"])
def test_negative_numbers_are_refused(key: str) -> None:
    with pytest.raises(ConfigError, match=f"^Expected `{key}` to be at least 0, but got -1$"):
        load_data("digits", **{key: -1})  # type: ignore[arg-type]


def test_an_unknown_data_set_is_refused() -> None:
    with pytest.raises(ConfigError, match="^Expected `data set` to be one of .*digits, imagefolder.* but got 'mnist'$"):
        load_data("mnist")


def test_cifar100_says_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="^Expected `path` to be the folder of CIFAR-100's files, but got ''$"):
        load_data("cifar100")
    with pytest.raises(ConfigError, match="^Expected `image_size` to be 0 or 32 for cifar100, but got 64$"):
        load_data("cifar100", str(tmp_path), image_size=64)
    with pytest.raises(DataError, match="cifar-100-python` to hold the files .*set `download` to download them"):
        load_data("cifar100", str(tmp_path))


def test_digits_has_a_fixed_balanced_split_and_is_not_mirrored() -> None:
    one, other = load_data("digits", seed=0), load_data("digits", seed=1)
    assert isinstance(one, InMemoryBundle) and isinstance(other, InMemoryBundle)
    assert torch.equal(one.train.images, other.train.images)
    assert one.test_labels.bincount().tolist() == [60] * 10
    assert (one.augmentation.padding, one.augmentation.flip) == (1, False)
    with pytest.raises(ConfigError, match="^Expected `image_size` to be 0 or 8 for digits, but got 16$"):
        load_data("digits", image_size=16)


@pytest.mark.skipif(not IMAGES, reason="TLLM_IMAGES does not name an image folder")
def test_real_images() -> None:
    bundle: DataBundle = load_data("imagefolder", IMAGES, image_size=32, num_workers=2)
    assert set(bundle.train_labels.tolist()) == set(range(bundle.num_classes))
    image, target, index = next(iter(bundle.train_loader(None, batch_size=256, seed=0, device="cpu")))
    assert torch.isfinite(image).all()
    assert torch.equal(target, bundle.train_labels[index])
    # Photographs are neither constant nor noise: neighbouring pixels resemble each other.
    assert 0.5 < image.std() < 1.5
    assert (image[..., 1:] - image[..., :-1]).abs().mean() < image.abs().mean()
