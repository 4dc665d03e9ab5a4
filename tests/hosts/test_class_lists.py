"""A list of classes is read in one way: all indices or all names, and what could be either is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.hosts.folder_runs import config
from tests.hosts.small_images import CLASSES, make_images
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.class_lists import list_problems, resolve_classes
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.tllm_node import tllm_node
from tllm_plugin.runs.flags_file import ClassFlag, DetectorChoice, FlagsRecord
from tllm_plugin.runs.run_folder import RunFolder

ANIMALS = ("ant", "bee", "cat", "dog")
DIGITS = tuple("0123456789")
#: Folders 0 to 11, as text sorts them.
FOLDERS = tuple(sorted(map(str, range(12))))


def resolve(items: list[Any], names: tuple[str, ...], **how: bool) -> list[int]:
    return resolve_classes("CLASSES", items, names, **how)


@pytest.mark.parametrize(
    ("items", "names", "wanted"),
    [
        ([3, 0], ANIMALS, [3, 0]),
        (["3", "0"], ANIMALS, [3, 0]),
        (["dog", "ant"], ANIMALS, [3, 0]),
        # Both readings, and they agree.
        ([8, 3], DIGITS, [8, 3]),
        (["8", "3"], DIGITS, [8, 3]),
        ([0, 1], FOLDERS, [0, 1]),
        ([1, 0], ("1", "0"), [1, 0]),
        # Only one of them is possible.
        ([100], ("100", "200"), [0]),
        (["007", "008"], ("008", "007"), [1, 0]),
        (["index:2", "index:10"], FOLDERS, [2, 10]),
        (["name:2", "name:10"], FOLDERS, [4, 2]),
        ([], ANIMALS, []),
    ],
)
def test_one_way(items: list[Any], names: tuple[str, ...], wanted: list[int]) -> None:
    assert resolve(items, names) == wanted


@pytest.mark.parametrize("items", [[2, 10], ["2", "10"], [2, "10"], ["3"]])
def test_what_could_be_either_is_refused_with_both_readings(items: list[Any]) -> None:
    with pytest.raises(ConfigError) as error:
        resolve(items, FOLDERS)
    by_index = ", ".join(repr(FOLDERS[int(item)]) for item in items)
    by_name = ", ".join(str(FOLDERS.index(str(item))) for item in items)
    assert f"classes named {by_index}, as names" in str(error.value) and f"indices {by_name};" in str(error.value)
    assert "\n" not in str(error.value)
    assert resolve(items, FOLDERS, recorded=True) == [int(item) for item in items]


@pytest.mark.parametrize(
    ("items", "names", "told"),
    [
        ([2, "dog"], ANIMALS, "all class indices or all class names, but got '2', 'dog'"),
        (["dog", "fox"], ANIMALS, "one of ant, bee, cat, dog, but got 'fox'"),
        ([4], ANIMALS, "one of ant, bee, cat, dog, but got '4'"),
        ([1, 1], ANIMALS, "every class once, but '1' appears twice"),
        ([1, "1"], ANIMALS, "every class once, but '1' appears twice"),
        ([-1], ANIMALS, "from 0 on or class names, but got -1"),
        ([True], ANIMALS, "class names, but got True"),
        ([1.0], ANIMALS, "class names, but got 1.0"),
        ([None], ANIMALS, "class names, but got None"),
        (["index:dog"], ANIMALS, "one of ant, bee, cat, dog, but got 'dog'"),
        (["x"], ("x", "x", "y"), "to be one of"),
    ],
)
def test_refusals(items: list[Any], names: tuple[str, ...], told: str) -> None:
    with pytest.raises(ConfigError, match="Expected `CLASSES` to ") as error:
        resolve(items, names)
    assert told in str(error.value)


def test_flags_of_other_classes(tmp_path: Path) -> None:
    run = RunFolder(tmp_path).create()

    def write(names: tuple[str, ...]) -> str:
        flags = tuple(
            ClassFlag(i, name, i == 1, 1 if i == 1 else None, None, None, None, 0, 0) for i, name in enumerate(names)
        )
        run.write_flags(FlagsRecord(DetectorChoice("fixed", {}), 1, len(names), "", flags))
        return str(run.flags_json)

    assert resolve([write(ANIMALS)], ANIMALS, files=True) == [1]
    # A host without names.
    assert resolve([write(("0", "1", "2", "3"))], ANIMALS, files=True) == [1]
    with pytest.raises(ConfigError, match="another order: class 0 was 'dog' and is 'ant'"):
        resolve([write(ANIMALS[::-1])], ANIMALS, files=True)
    with pytest.raises(ConfigError, match="class 'fox' is now 'dog'"):
        resolve([write((*ANIMALS[:3], "fox"))], ANIMALS, files=True)


def test_without_the_data_duplicates_are_found(tmp_path: Path) -> None:
    assert not list_problems("K", [1, "ant"]) and not list_problems("K", [])
    for key in ("TLLM.DETECTOR.CLASSES", "DISTILLER.PLANT.CLASSES"):
        for value in ("[3, 8, 3]", "[-1]", "[1.5]"):
            with pytest.raises(ConfigError, match=f"Expected `{key}` to "):
                config(tmp_path, key, value)
    assert tllm_node().DETECTOR.CLASSES == []


def test_planted_classes_are_read_in_the_same_way(tmp_path: Path) -> None:
    images = tmp_path / "images"
    make_images(images)
    for part in ("train", "val"):
        for label in range(CLASSES):
            (images / part / f"n{label}").rename(images / part / f"{label + 6}")  # 6 to 11: text order 10, 11, 6, ...
    (images / "train" / "6").rename(images / "train" / "0")
    (images / "val" / "6").rename(images / "val" / "0")
    options = ("DISTILLER.TYPE", "KD", "TLLM.DETECTOR.TYPE", "none")
    for classes, told in (("[0, 7]", None), ("['8']", None), ("[0, 1, 8]", "all class indices or all class names")):
        cfg = config(images, *options, "DISTILLER.PLANT.CLASSES", classes, "EXPERIMENT.NAME", "planted")
        if told is None:
            recipe.run(cfg, overwrite=True)
            continue
        with pytest.raises(ConfigError, match=f"`DISTILLER.PLANT.CLASSES` to be {told}"):
            recipe.run(cfg, overwrite=True)
