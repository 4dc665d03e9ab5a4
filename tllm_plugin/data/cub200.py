"""CUB-200-2011: 11,788 photographs of 200 species of birds, in the official folder.

The data set (1.1 GB) is not downloaded automatically; download it once with:

    curl -L -O https://data.caltech.edu/records/65de6-vp158/files/CUB_200_2011.tgz
    echo "97eceeb196236b17998738112f37df78  CUB_200_2011.tgz" | md5sum --check
    tar -xzf CUB_200_2011.tgz

Source: Wah et al., "The Caltech-UCSD Birds-200-2011 Dataset", 2011.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch

from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.data.bundle import DataBundle
from tllm_plugin.data.image_folder import LARGE_IMAGE_MEAN, LARGE_IMAGE_STD
from tllm_plugin.data.registry import DATA_SETS
from tllm_plugin.data.streamed import StreamedBundle

logger = logging.getLogger(__name__)

FOLDER = "CUB_200_2011"
LISTS = ("classes.txt", "images.txt", "image_class_labels.txt", "train_test_split.txt")
IMAGE_SIZE = 224
# The paper uses brightness jitter "of MXNet"; MXNet's training scripts use this strength.
BRIGHTNESS = 0.4


@dataclass(frozen=True)
class Cub200:
    """Content of the lists.

    Args:
        class_names: Readable names of the classes, in label order.
        train_files: Paths of the training images.
        train_labels: Labels of the training images, from 0 on.
        test_files: Paths of the test images.
        test_labels: Labels of the test images.
    """

    class_names: tuple[str, ...]
    train_files: tuple[str, ...]
    train_labels: tuple[int, ...]
    test_files: tuple[str, ...]
    test_labels: tuple[int, ...]


@DATA_SETS.register("cub200")
def load_cub200(path: str, *, image_size: int = 0, num_workers: int = 2, **_: object) -> DataBundle:
    """Load the official split: 5,994 training and 5,794 test images, read from disk in every epoch.

    Training images are randomly cropped, mirrored and changed in brightness; test images are resized and cropped at the
    centre. Pixels are normalised with ImageNet's statistics.

    Args:
        path: Folder `CUB_200_2011` of the archive, or the folder that contains it.
        image_size: Height and width of the images in pixels; 0 means 224.
        num_workers: Number of processes that decode images.

    Raises:
        ConfigError: `path` is not this folder.
        DataError: A list or an image is missing, or the lists contradict each other.
    """
    birds = read_cub200(path)
    return StreamedBundle(
        class_names=birds.class_names,
        in_channels=3,
        image_size=image_size or IMAGE_SIZE,
        mean=LARGE_IMAGE_MEAN,
        std=LARGE_IMAGE_STD,
        train_labels=torch.tensor(birds.train_labels, dtype=torch.int64),
        test_labels=torch.tensor(birds.test_labels, dtype=torch.int64),
        train_files=birds.train_files,
        test_files=birds.test_files,
        num_workers=num_workers,
        brightness=BRIGHTNESS,
    )


def read_cub200(path: str) -> Cub200:
    """Read the lists in a folder and check that lists and images are complete; see `load_cub200`."""
    root = find_root(path)
    names = [name.split(".", 1)[-1].replace("_", " ") for name in _read(root, "classes.txt").values()]
    files = _read(root, "images.txt")
    labels = _numbers(root, "image_class_labels.txt", files, 1, len(names))
    is_train = _numbers(root, "train_test_split.txt", files, 0, 1)
    _check_images(root, files)

    def part(wanted: int) -> tuple[tuple[str, ...], tuple[int, ...]]:
        numbers = [number for number in files if is_train[number] == wanted]
        return tuple(str(root / "images" / files[i]) for i in numbers), tuple(labels[i] - 1 for i in numbers)

    train, test = part(1), part(0)
    logger.info("%s: %d training and %d test images", root, len(train[0]), len(test[0]))
    return Cub200(tuple(names), *train, *test)


def find_root(path: str) -> Path:
    """Return the folder that contains the lists.

    Raises:
        ConfigError: There is no such folder.
    """
    given = Path(path).expanduser()
    for root in (given, given / FOLDER):
        if path and (root / "images.txt").is_file():
            return root
    raise ConfigError(
        f"Expected `path` to be the folder {FOLDER} of CUB-200-2011, or the one that holds it, but there is no "
        f"images.txt in {path!r}; how to get it: tllm_plugin/data/cub200.py"
    )


def _read(root: Path, name: str) -> dict[int, str]:
    """Return the values of a list, whose lines are numbered from 1."""
    file = root / name
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"Expected `{root}` to hold the four lists {', '.join(LISTS)}, but reading {name} failed: {error}"
        ) from error
    entries: dict[int, str] = {}
    for number, line in enumerate(lines, start=1):
        index, _, value = line.partition(" ")
        if index != str(number) or not value.strip():
            raise DataError(
                f"Expected line {number} of `{file}` to be `{number} <value>`, but got {line[:80]!r}; extract the "
                "archive again"
            )
        entries[number] = value.strip()
    if not entries:
        raise DataError(
            f"Expected `{file}` to have one line for each entry, but it is empty; extract the archive again"
        )
    return entries


def _numbers(root: Path, name: str, files: dict[int, str], low: int, high: int) -> dict[int, int]:
    values = _read(root, name)
    if len(values) != len(files):
        raise DataError(
            f"Expected `{root / name}` to have a line for each of the {len(files)} images of images.txt, but it has "
            f"{len(values)}; extract the archive again"
        )
    wrong = [number for number, text in values.items() if not (text.isdecimal() and low <= int(text) <= high)]
    if wrong:
        raise DataError(
            f"Expected numbers from {low} to {high} in `{root / name}`, but line {wrong[0]} has {values[wrong[0]]!r}"
        )
    return {number: int(text) for number, text in values.items()}


def _check_images(root: Path, files: dict[int, str]) -> None:
    missing = [name for name in files.values() if not (root / "images" / name).is_file()]
    if missing:
        raise DataError(
            f"Expected `{root / 'images'}` to hold the {len(files)} images of images.txt, but {len(missing)} are "
            f"missing, {missing[0]} among them; extract the archive again"
        )
