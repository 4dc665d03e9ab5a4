"""Order class folders, which defines the labels: text order as in torchvision, natural order as in timm, or a file."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from tllm_plugin.core.data_identity import DataIdentity, class_difference
from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.data.folder import FolderPart

NATURAL = "natural"

#: "" is text order, as torchvision has it; "natural" that of timm; otherwise a file of names, or the names themselves.
ClassOrder = str | Sequence[str]


def natural_order(names: Sequence[str]) -> tuple[str, ...]:
    """Sort names as timm sorts class folders: numbers by value, letters regardless of case.

    >>> natural_order(["10", "2", "b", "A"])
    ('2', '10', 'A', 'b')
    """

    def key(name: str) -> list[str | int]:
        # Text and numbers alternate, starting with text, so that equal types are compared.
        parts: list[str | int] = list(re.split(r"(\d+)", name.lower()))
        parts[1::2] = map(int, parts[1::2])
        return parts

    return tuple(sorted(sorted(names), key=key))


def ordered(names: Sequence[str], order: ClassOrder, root: Path) -> tuple[str, ...]:
    """Return the names of class folders in the requested order.

    Args:
        names: Names of the existing folders.
        order: See `ClassOrder`.
        root: Folder that contains them, for error messages.

    Raises:
        ConfigError: The order cannot be read, or does not list exactly the existing folders.
    """
    if order == "":
        return tuple(sorted(names))
    if order == NATURAL:
        return natural_order(names)
    named = read_order(order) if isinstance(order, str) else tuple(order)
    twice = [name for name, uses in Counter(named).items() if uses > 1]
    if twice:
        raise ConfigError(f"Expected the class order to name every class folder once, but {twice[0]!r} appears twice")
    if set(named) != set(names):
        raise ConfigError(
            f"Expected the class order to name the class folders of `{root}`, but in the folder "
            f"{class_difference(DataIdentity(named), DataIdentity(tuple(sorted(names))))}"
        )
    return named


def read_order(path: str) -> tuple[str, ...]:
    """Read names from a file, one per non-empty line.

    Raises:
        ConfigError: The file cannot be read or contains no name.
    """
    file = Path(path).expanduser()
    try:
        lines = file.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"Expected the class order to be '', '{NATURAL}' or a file with the name of a class folder on each line, "
            f"but reading {path!r} failed: {error}"
        ) from error
    names = tuple(line.strip() for line in lines if line.strip())
    if not names:
        raise ConfigError(f"Expected {path!r} to hold the name of a class folder on each line, but it holds none")
    return names


def in_order(part: FolderPart, classes: Sequence[str]) -> FolderPart:
    """Reorder the classes of a part, together with its files and labels."""
    if tuple(classes) == part.classes:
        return part
    old = {name: label for label, name in enumerate(part.classes)}
    if set(classes) != set(old):
        raise DataError(f"Expected `{part.root}` to hold the class folders {classes!r}, but got {part.classes!r}")
    new_label = torch.empty(len(old), dtype=torch.int64)
    for label, name in enumerate(classes):
        new_label[old[name]] = label
    labels = new_label[part.labels]
    rows = torch.argsort(labels, stable=True)
    files = tuple(part.files[row] for row in rows.tolist())
    return replace(part, classes=tuple(classes), files=files, labels=labels[rows])


def differing_orders(names: Sequence[str]) -> str:
    """Describe how text and natural order of class folders differ, as the end of a sentence; empty if they do not.

    >>> differing_orders(["0", "1", "10", "2"])
    "class 2 is '10' in text order and '2' in timm's natural order"
    """
    text, natural = sorted(names), natural_order(names)
    place = next((i for i, (one, other) in enumerate(zip(text, natural, strict=True)) if one != other), None)
    if place is None:
        return ""
    return f"class {place} is {text[place]!r} in text order and {natural[place]!r} in timm's natural order"
