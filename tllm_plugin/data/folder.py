"""Read the layout `PATH/{train,val}/<class>/*` of torchvision's `ImageFolder`, checked before images are decoded."""

from __future__ import annotations

import logging
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torchvision.datasets.folder import IMG_EXTENSIONS

from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.data.listing import Listing, count_shared, list_images

logger = logging.getLogger(__name__)

TEST_FOLDERS = ("val", "test")
_SHOWN_NAMES = 5


@dataclass(frozen=True, eq=False)
class FolderPart:
    """One part of a data set on disk.

    Args:
        root: Folder that contains the class folders.
        classes: Sorted names of the class folders; the position is the label.
        files: Image files sorted by class and then by name, as in `ImageFolder`.
        labels: (N,) int64, labels of the files.
    """

    root: Path
    classes: tuple[str, ...]
    files: tuple[str, ...]
    labels: Tensor


def find_parts(path: str) -> tuple[FolderPart, FolderPart]:
    """Find training and test part of an image folder.

    The test part is `val`, or `test` if there is no `val`, because `test` has no labels in ImageNet's layout.

    Raises:
        ConfigError: `path` is not a folder.
        DataError: A part is missing or has fewer than two classes, or the parts have different classes.
    """
    root = Path(path).expanduser()
    if not path or not root.is_dir():
        raise ConfigError(f"Expected `path` to be a folder that holds `train` and `val`, but got {path!r}")
    train_root = root / "train"
    test_root = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if not train_root.is_dir():
        raise DataError(f"Expected `{root}` to hold a folder `train`, but it holds {_shown(os.listdir(root))}")
    if test_root is None:
        raise DataError(f"Expected `{root}` to hold a folder `val` or `test`, but it holds {_shown(os.listdir(root))}")
    listings = list_images(train_root), list_images(test_root)
    train, test = (_part(part, listing) for part, listing in zip((train_root, test_root), listings, strict=True))
    for part, other in ((train, test), (test, train)):
        missing = set(other.classes) - set(part.classes)
        if missing:
            raise DataError(
                f"Expected `{part.root}` to have the same class folders as `{other.root}`, "
                f"but it lacks {_shown(missing)}"
            )
    _check_several(train)
    shared = count_shared(listings[0], train_root, listings[1], test_root)
    if shared:
        logger.warning(
            "%s and %s share %d images through links: training images will be tested", train_root, test_root, shared
        )
    return train, test


def scan_part(root: Path) -> FolderPart:
    """List the images of every class folder in `root`, including subfolders; see `list_images`.

    Raises:
        DataError: Fewer than two folders contain images, or a folder cannot be read.
    """
    part = _part(root, list_images(root))
    _check_several(part)
    return part


def _part(root: Path, listing: Listing) -> FolderPart:
    left_out = listing.left_out.line()
    if left_out:
        logger.info("%s: left out %s", root, left_out)
    classes = tuple(listing.files)
    if not classes:
        raise DataError(
            f"Expected `{root}` to hold one folder with images ({', '.join(IMG_EXTENSIONS)}) for each class, but it "
            f"holds none{f'; left out were {left_out}' if left_out else ''}"
        )
    files = tuple(file for found in listing.files.values() for file in found)
    counts = torch.tensor([len(found) for found in listing.files.values()])
    return FolderPart(root, classes, files, torch.arange(len(classes)).repeat_interleave(counts))


def _check_several(part: FolderPart) -> None:
    if len(part.classes) == 1:
        raise DataError(
            f"Expected `{part.root}` to hold a folder for each of at least two classes, but it holds "
            f"{part.classes[0]!r} only; if the class folders are inside it, use a path one level deeper"
        )


def readable_names(root: Path, folders: tuple[str, ...]) -> tuple[str, ...]:
    """Return readable class names: from `root/classes.txt` if it exists, otherwise the names of the folders.

    Each line consists of the folder's name, a tab or spaces, and the readable name; other folders keep their names. If
    two classes have the same readable name ("crane", the bird and the machine), the folder is added to both.

    Raises:
        DataError: The file exists but cannot be read as text.
    """
    file = root / "classes.txt"
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except FileNotFoundError:
        return folders
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"Expected `{file}` to be UTF-8 text, but reading it failed: {error}") from error
    # The name of a folder may contain spaces, so a tab takes precedence as separator.
    fields = [line.split("\t" if "\t" in line else None, maxsplit=1) for line in lines]
    readable = {pair[0].strip(): pair[1].strip() for pair in fields if len(pair) == 2 and pair[1].strip()}
    names = [readable.get(folder, folder) for folder in folders]
    uses = Counter(names)
    return tuple(name if uses[name] == 1 else f"{name} ({folder})" for name, folder in zip(names, folders, strict=True))


def _shown(names: list[str] | set[str]) -> str:
    ordered = sorted(names)
    more = len(ordered) - _SHOWN_NAMES
    return (", ".join(ordered[:_SHOWN_NAMES]) or "nothing") + (f" and {more} more" if more > 0 else "")
