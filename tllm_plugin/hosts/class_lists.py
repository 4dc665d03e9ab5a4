"""Resolve lists of classes in configs: all by index or all by name; ambiguous lists are refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tllm_plugin.core.data_identity import DataIdentity, class_difference
from tllm_plugin.core.errors import ConfigError, unknown_name
from tllm_plugin.core.paths import expanded
from tllm_plugin.runs.flags_file import FlagsRecord

#: Put before every item, they say how the list is meant where it could be either.
_PREFIXES = ("index:", "name:")


def list_problems(key: str, items: Sequence[Any]) -> list[str]:
    """Return the problems of a list that do not depend on the data, one sentence each."""
    wrong = [item for item in items if isinstance(item, bool) or not isinstance(item, int | str) or item == ""]
    if wrong:
        return [f"Expected `{key}` to be a list of class indices or class names, but got {wrong[0]!r}"]
    if negative := [item for item in items if isinstance(item, int) and item < 0]:
        return [f"Expected `{key}` to be a list of class indices from 0 on or class names, but got {negative[0]}"]
    seen: set[str] = set()
    for text in map(str, items):
        if text in seen:
            return [f"Expected `{key}` to name every class once, but {text!r} appears twice"]
        seen.add(text)
    return []


def resolve_classes(
    key: str, items: Sequence[Any], class_names: Sequence[str], *, files: bool = False, recorded: bool = False
) -> list[int]:
    """Return the indices of the classes in a list.

    >>> resolve_classes("CLASSES", ["bee", "ant"], ["ant", "bee"])
    [1, 0]
    >>> resolve_classes("CLASSES", [2, 10], ["1", "10", "2"])
    [2, 1]

    Args:
        key: Config key of the list, for error messages.
        items: Integers and strings. A string that is an integer may be an index, because command lines have only
            strings.
        class_names: (C,) names.
        files: Whether a single name that ends in `.json` is the path of a `flags.json`, whose flagged classes are
            returned.
        recorded: Whether the list was recorded by a run; an ambiguous list is then read as indices instead of being
            refused.

    Raises:
        ConfigError: A class is unknown or appears twice, or indices and names are mixed or ambiguous.
        FileFormatError: The file cannot be read.
    """
    if files and len(items) == 1 and str(items[0]).endswith(".json"):
        return _flagged_in(str(items[0]), class_names)
    if problems := list_problems(key, items):
        raise ConfigError(problems[0])
    texts = [str(item) for item in items]
    stated = next((prefix for prefix in _PREFIXES if texts and all(text.startswith(prefix) for text in texts)), "")
    texts = [text.removeprefix(stated) for text in texts]
    by_index = [_index(text, len(class_names)) for text in texts] if stated != "name:" else [None for _ in texts]
    by_name = [_place(text, class_names) for text in texts] if stated != "index:" else [None for _ in texts]
    indices = [index for index in by_index if index is not None]
    named = [place for place in by_name if place is not None]
    if len(indices) == len(named) == len(texts) and set(indices) != set(named) and not recorded:
        raise ConfigError(
            f"Expected `{key}` to be class indices or class names, but {_listed(texts)} could be either: as indices "
            f"the classes named {_listed([class_names[i] for i in indices])}, as names the classes with the indices "
            f"{', '.join(map(str, named))}; write `index:` or `name:` before each"
        )
    for found in (indices, named):
        if len(found) == len(texts):
            if len(set(found)) < len(found):
                raise ConfigError(f"Expected `{key}` to name every class once, but got {_listed(texts)}")
            return found
    for text, index, place in zip(texts, by_index, by_name, strict=True):
        if index is None and place is None:
            raise ConfigError(unknown_name(key, text, class_names))
    raise ConfigError(f"Expected `{key}` to be all class indices or all class names, but got {_listed(texts)}")


def _index(text: str, count: int) -> int | None:
    # 007 can be a name, but is not an index.
    canonical = text.isascii() and text.isdecimal() and text == text.lstrip("0").rjust(1, "0")
    return int(text) if canonical and len(text) <= len(str(count)) and int(text) < count else None


def _place(text: str, class_names: Sequence[str]) -> int | None:
    return list(class_names).index(text) if list(class_names).count(text) == 1 else None


def _flagged_in(path: str, class_names: Sequence[str]) -> list[int]:
    record = FlagsRecord.read(expanded(path))
    if record.num_classes != len(class_names):
        raise ConfigError(f"Expected {path} to be of {len(class_names)} classes, but it is of {record.num_classes}")
    names = tuple(item.name for item in record.classes)
    # Hosts without class names number the classes.
    numbers = tuple(map(str, range(len(names))))
    difference = class_difference(DataIdentity(names), DataIdentity(tuple(class_names)))
    if difference and numbers not in (names, tuple(class_names)):
        raise ConfigError(f"Expected {path} to be of these classes, in this order, but {difference}")
    return list(record.flagged)


def _listed(texts: Sequence[str]) -> str:
    return ", ".join(map(repr, texts))
