"""What is found in a folder, before anything is decoded, against torchvision's own listing."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from torchvision.datasets import ImageFolder

from tllm_plugin.core.errors import DataError
from tllm_plugin.data.folder import find_parts, readable_names, scan_part

MakeFolder = Callable[..., Path]


def test_lists_files_as_torchvision_does(make_folder: MakeFolder) -> None:
    # More than ten files: "10.png" sorts before "2.png". Upper case, subfolders and other files are in the way.
    root = make_folder(classes=("dog", "cat", "Eel"), per_class=12) / "train"
    (root / "dog" / "more").mkdir()
    shutil.copy(root / "cat" / "0.png", root / "dog" / "more" / "0.PNG")
    (root / "cat" / "notes.txt").write_text("not an image")
    expected = ImageFolder(str(root))
    part = scan_part(root)
    assert part.classes == tuple(expected.classes)
    assert list(zip(part.files, part.labels.tolist(), strict=True)) == expected.samples


def test_follows_links(make_folder: MakeFolder) -> None:
    root = make_folder() / "train"
    (root / "wolf").symlink_to(root / "dog", target_is_directory=True)
    (root / "cat" / "wild").symlink_to(root / "dog", target_is_directory=True)
    part = scan_part(root)
    assert list(zip(part.files, part.labels.tolist(), strict=True)) == ImageFolder(str(root)).samples
    assert part.labels.tolist() == [0] * 6 + [1] * 3 + [2] * 3


def test_a_path_that_is_a_part_itself_shows_what_is_there(make_folder: MakeFolder) -> None:
    root = make_folder(classes=tuple("abcdefg"), per_class=1)
    with pytest.raises(DataError, match="to hold a folder `train`, but it holds a, b, c, d, e and 2 more$"):
        find_parts(str(root / "train"))


def test_an_empty_folder_shows_that_nothing_is_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=f"^Expected `{tmp_path}` to hold a folder `train`, but it holds nothing$"):
        find_parts(str(tmp_path))


def test_a_path_may_begin_at_home(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder()
    monkeypatch.setenv("HOME", str(root.parent))
    assert find_parts(f"~/{root.name}")[0].root == root / "train"


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("cat\tPersian cat, angora\ndog\tpug\n", ("Persian cat, angora", "pug")),
        ("dog pug dog\nwolf grey wolf\n", ("cat", "pug dog")),
        ("dog\tcrane\ncat\tcrane\n", ("crane (cat)", "crane (dog)")),
        ("cat\n\ndog\t\n", ("cat", "dog")),
        ("", ("cat", "dog")),
    ],
    ids=["tabs", "spaces, one missing", "one name twice", "no names", "empty"],
)
def test_readable_names(tmp_path: Path, text: str, names: tuple[str, ...]) -> None:
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    assert readable_names(tmp_path, ("cat", "dog")) == names


def test_a_tab_separates_names_of_folders_that_hold_spaces(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("big cat\tlion\n", encoding="utf-8")
    assert readable_names(tmp_path, ("big cat",)) == ("lion",)
