"""What a data set is remembered by: the same for the same data wherever they lie, and another one for any other."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.conftest import MakeFolder
from tllm_plugin.core.data_identity import (
    DataIdentity,
    class_difference,
    difference_in_test,
    normalisation_difference,
    training_difference,
)
from tllm_plugin.data import load_data

IN_MEMORY, STREAMED = 0, 72


def identity(root: Path, image_size: int = IN_MEMORY) -> DataIdentity:
    return load_data("imagefolder", str(root), image_size=image_size, num_workers=0).identity


@pytest.mark.parametrize("image_size", [IN_MEMORY, STREAMED])
def test_moved_data_are_the_same(image_size: int, make_folder: MakeFolder, tmp_path: Path) -> None:
    before = identity(make_folder(), image_size)
    moved = tmp_path / "some where" / "else"
    moved.mkdir(parents=True)
    for part in ("train", "val"):
        shutil.move(tmp_path / part, moved / part)
    assert identity(moved, image_size) == before
    assert before.digest() == identity(moved, image_size).digest()
    assert before.class_names == ("cat", "dog") and before.train.counts == (3, 3)


def rename_class(root: Path) -> None:
    for part in ("train", "val"):
        (root / part / "cat").rename(root / part / "zebra")


def add_file(root: Path) -> None:
    shutil.copy(root / "train/dog/0.png", root / "train/dog/new.png")


def rename_file(root: Path) -> None:
    (root / "train/dog/0.png").rename(root / "train/dog/first.png")


def change_size(root: Path) -> None:
    Image.fromarray(np.zeros((16, 16, 3), dtype=np.uint8)).save(root / "train/dog/0.png")


def move_file(root: Path) -> None:
    (root / "train/dog/0.png").rename(root / "train/cat/9.png")


@pytest.mark.parametrize("image_size", [IN_MEMORY, STREAMED])
@pytest.mark.parametrize(
    ("change", "told"),
    [
        (rename_class, "class 'cat' is now 'zebra'"),
        (add_file, "1 training image was added, the first in class 'dog'"),
        (rename_file, "names or sizes of training files are others"),
        (change_size, "names or sizes of training files are others"),
        (move_file, "1 training image was added and 1 training image was removed, the first in class 'cat'"),
    ],
)
def test_every_change_is_told(
    change: Callable[[Path], None], told: str, image_size: int, make_folder: MakeFolder
) -> None:
    root = make_folder()
    before = identity(root, image_size)
    change(root)
    now = identity(root, image_size)
    assert told in training_difference(before, now)
    assert training_difference(before, before) == training_difference(now, now) == ""
    assert before.digest() != now.digest()


def test_pixels_in_memory_count(make_folder: MakeFolder) -> None:
    root = make_folder()
    # Uncompressed files have one size, whatever is in them.
    for path in root.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()
    before = identity(root)
    Image.fromarray(np.full((16, 16, 3), 7, dtype=np.uint8)).save(root / "train/cat/1.bmp")
    assert "training images are others" in training_difference(before, identity(root))
    assert difference_in_test(before, identity(root)) == ""


def test_a_test_part_is_told_apart(make_folder: MakeFolder) -> None:
    root = make_folder()
    before = identity(root)
    (root / "val/cat/0.png").unlink()
    assert training_difference(before, identity(root)) == ""
    assert difference_in_test(before, identity(root)) == "1 test image was removed, the first in class 'cat'"


def test_digits_are_the_digits() -> None:
    one, other = (load_data("digits").identity for _ in range(2))
    assert one == other and one.train.contents and one.test.contents and not one.train.files
    assert (one.image_size, len(one.mean), one.class_names) == (8, 1, tuple("0123456789"))


def test_what_is_not_known_does_not_differ() -> None:
    known = load_data("digits").identity
    for other in (DataIdentity(), DataIdentity(known.class_names)):
        assert training_difference(other, known) == training_difference(known, other) == ""
        assert normalisation_difference(other, known) == ""


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("ab", "ba", "another order: class 0 was 'a' and is 'b'"),
        ("abc", "ab", "1 class 'c' was removed"),
        ("ab", "abcd", "2 classes 'c', 'd' were added"),
        ("abc", "axy", "there are no classes 'b', 'c' any more, but 'x', 'y'"),
        ("ab", ("a", "b\u202e\n"), "class 'b' is now 'b\\u202e\\n'"),
    ],
)
def test_classes(old: str, new: str, told: str) -> None:
    assert told in class_difference(DataIdentity(tuple(old)), DataIdentity(tuple(new)))
