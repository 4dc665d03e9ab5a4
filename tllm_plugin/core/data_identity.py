"""Describe the data of a run in a small record that is stored with the run and can be compared later."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

_SHOWN = 3


@dataclass(frozen=True)
class DataPart:
    """Training or test part of a data set; empty fields are unknown.

    Args:
        counts: (C,) images per class.
        labels: Digest of the labels, in order.
        files: Digest of the files, in order: their sizes and their names below their common folder.
        contents: Digest of the images, if they are in memory.
    """

    counts: tuple[int, ...] = ()
    labels: str = ""
    files: str = ""
    contents: str = ""


@dataclass(frozen=True)
class DataIdentity:
    """Data set as a network sees it; fields that are empty or 0 are unknown.

    Args:
        class_names: (C,) names, in label order.
        train: Training images, including the hold-outs.
        test: Test images.
        image_size: Height and width of the network's input, in pixels.
        mean: Mean per channel, subtracted from pixels in [0, 1].
        std: Standard deviation per channel, by which pixels are divided afterwards.
        class_folders: (C,) names of the class folders, if any; they may differ from the class names.
    """

    class_names: tuple[str, ...] = ()
    train: DataPart = DataPart()
    test: DataPart = DataPart()
    image_size: int = 0
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    class_folders: tuple[str, ...] = ()

    def digest(self) -> str:
        """Return the SHA-256 of the record as 64 hexadecimal digits.

        >>> DataIdentity(("cat", "dog")).digest() == DataIdentity(("cat", "dog")).digest()
        True
        """
        return hashlib.sha256(repr(asdict(self)).encode("utf-8", "surrogatepass")).hexdigest()

    def for_training(self) -> DataIdentity:
        """Return the part on which a trained network depends, without test images and display names of classes."""
        return replace(self, test=DataPart(), class_names=self.class_folders or self.class_names)


def class_difference(recorded: DataIdentity, now: DataIdentity) -> str:
    """Describe how the classes differ, as the end of a sentence; empty if they are equal or unknown.

    >>> class_difference(DataIdentity(("ant", "bee")), DataIdentity(("bee", "wasp")))
    "class 'ant' is now 'wasp'"
    >>> class_difference(DataIdentity(("1", "2", "10")), DataIdentity(("1", "10", "2")))
    "the classes stand in another order: class 1 was '2' and is '10'"
    """
    old, new = recorded.class_names, now.class_names
    if recorded.class_folders and now.class_folders:
        # The display name of a class does not affect a network.
        old, new = recorded.class_folders, now.class_folders
    if not old or not new or old == new:
        return ""
    gone, added = ([name for name in names if name not in set(others)] for names, others in ((old, new), (new, old)))
    if len(gone) == len(added) == 1:
        return f"class {gone[0]!r} is now {added[0]!r}"
    if gone and added:
        return f"there are no classes {_listed(gone)} any more, but {_listed(added)}"
    if gone:
        return _changed("class", "classes", len(gone), "removed", f" {_listed(gone)}")
    if added:
        return _changed("class", "classes", len(added), "added", f" {_listed(added)}")
    place = next(i for i, (before, after) in enumerate(zip(old, new, strict=False)) if before != after)
    return f"the classes stand in another order: class {place} was {old[place]!r} and is {new[place]!r}"


def training_difference(recorded: DataIdentity, now: DataIdentity) -> str:
    """Describe how two data sets differ for training; empty if they do not."""
    return (
        class_difference(recorded, now)
        or _part_difference(recorded.train, now.train, "training", now.class_names)
        or normalisation_difference(recorded, now)
    )


def difference_in_test(recorded: DataIdentity, now: DataIdentity) -> str:
    """Describe how two data sets differ for testing; empty if they do not."""
    return class_difference(recorded, now) or _part_difference(recorded.test, now.test, "test", now.class_names)


def normalisation_difference(recorded: DataIdentity, now: DataIdentity) -> str:
    """Describe how image size or normalisation differ; empty if they do not.

    >>> normalisation_difference(DataIdentity(mean=(0.5,), std=(0.2,)), DataIdentity(mean=(0.4,), std=(0.2,)))
    'the mean was 0.5 and is 0.4'
    """
    if recorded.image_size and now.image_size and recorded.image_size != now.image_size:
        return f"the image size was {recorded.image_size} and is {now.image_size}"
    for name in ("mean", "std"):
        old, new = getattr(recorded, name), getattr(now, name)
        if old and new and not _close(old, new):
            return f"the {name} was {shown_numbers(old)} and is {shown_numbers(new)}"
    return ""


def shown_numbers(values: Sequence[float]) -> str:
    """Format per-channel numbers for messages."""
    return ", ".join(f"{value:.4g}" for value in values)


def _close(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(math.isclose(a, b, rel_tol=1e-5, abs_tol=1e-6) for a, b in pairs)


def _part_difference(old: DataPart, new: DataPart, what: str, names: Sequence[str]) -> str:
    if old.counts and new.counts and old.counts != new.counts:
        changes = [after - before for before, after in zip(old.counts, new.counts, strict=False)]
        more, fewer = sum(c for c in changes if c > 0), -sum(c for c in changes if c < 0)
        first = next((i for i, change in enumerate(changes) if change), len(changes))
        where = f", the first in class {names[first]!r}" if first < len(names) else ""
        images = f"{what} image", f"{what} images"
        parts = [_changed(*images, n, verb) for n, verb in ((more, "added"), (fewer, "removed")) if n]
        return f"{' and '.join(parts)}{where}"
    for name, problem in (
        ("labels", f"the labels of {what} images are others"),
        ("files", f"names or sizes of {what} files are others"),
        ("contents", f"the {what} images are others"),
    ):
        before, after = getattr(old, name), getattr(new, name)
        if before and after and before != after:
            return problem
    return ""


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(map(repr, names[:_SHOWN])) + (f" and {more} more" if more > 0 else "")


def _changed(singular: str, plural: str, number: int, verb: str, which: str = "") -> str:
    return f"{number} {singular}{which} was {verb}" if number == 1 else f"{number} {plural}{which} were {verb}"
