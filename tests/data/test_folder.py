"""What is found in a folder, before anything is decoded, against torchvision's own listing."""

from __future__ import annotations

import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.datasets import ImageFolder

from tllm_plugin.core.errors import DataError
from tllm_plugin.data.folder import FolderPart, find_parts, readable_names, scan_part

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


def outside(tmp_path: Path, *names: str) -> Path:
    """Images beside the data set, of which links may be made."""
    folder = tmp_path / "store"
    folder.mkdir()
    for name in names:
        (folder / name).write_bytes(name.encode())
    return folder


def listed(part: FolderPart) -> dict[str, list[str]]:
    """Class -> its files, below the part."""
    found: dict[str, list[str]] = {name: [] for name in part.classes}
    for file, label in zip(part.files, part.labels.tolist(), strict=True):
        found[part.classes[label]].append(os.path.relpath(file, part.root))
    return found


def test_links_add_files_from_elsewhere(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=1) / "train"
    store = outside(root.parent, "0.png", "1.jpg", "2.bmp")
    (root / "wolf").symlink_to(store, target_is_directory=True)
    assert list(zip(scan_part(root).files, scan_part(root).labels.tolist(), strict=True)) == ImageFolder(root).samples
    (root / "wolf").unlink()
    (root / "dog" / "9.png").symlink_to(store / "1.jpg")
    (root / "dog" / "deep").mkdir()
    (root / "dog" / "deep" / "er").symlink_to(store, target_is_directory=True)
    # As torchvision lists it, but for the second name of 1.jpg.
    expected = [(file, label) for file, label in ImageFolder(root).samples if not file.endswith("er/1.jpg")]
    assert list(zip(scan_part(root).files, scan_part(root).labels.tolist(), strict=True)) == expected


@pytest.mark.parametrize(
    "link",
    ["cat/more.png -> dog/0.png", "cat/more -> dog", "ape -> dog", "zebra -> dog", "cat/up -> .", "cat/all -> ..", "="],
)
def test_a_file_that_is_there_counts_once_and_where_it_lies(
    make_folder: MakeFolder, link: str, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(per_class=2) / "train"
    if link == "=":  # The same file under a second name that is no link.
        os.link(root / "cat" / "0.png", root / "dog" / "0-again.png")
    else:
        name, target = link.split(" -> ")
        (root / name).symlink_to(root / target)
    with caplog.at_level(logging.INFO):
        part = scan_part(root)
    assert listed(part) == {"cat": ["cat/0.png", "cat/1.png"], "dog": ["dog/0.png", "dog/1.png"]}
    assert len(caplog.records) == 1 and "1 link to images that are counted already" in caplog.text


def test_links_that_lead_in_circles_or_nowhere(make_folder: MakeFolder) -> None:
    root = make_folder(per_class=1) / "train"
    store = outside(root.parent, "0.png")
    (store / "back").symlink_to(root, target_is_directory=True)
    (store / "self").symlink_to(store, target_is_directory=True)
    (root / "cat" / "a").symlink_to(store, target_is_directory=True)
    (root / "dog" / "loop").symlink_to(root / "dog" / "loop")
    (root / "loop").symlink_to(root / "loop")
    assert listed(scan_part(root)) == {"cat": ["cat/0.png", "cat/a/0.png"], "dog": ["dog/0.png"]}
    # What is named like an image stays, so that reading it says that it is not there.
    (root / "dog" / "gone.png").symlink_to(root / "nowhere.png")
    assert listed(scan_part(root))["dog"] == ["dog/0.png", "dog/gone.png"]


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    files=st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["", "x/", "x/y/"])), min_size=1, max_size=6),
    links=st.lists(
        st.tuples(st.sampled_from(["a", "b", "a/x", "b/x/y"]), st.sampled_from(["a", "b", "a/x", "b/x", ".", "store"])),
        max_size=5,
    ),
)
def test_every_real_file_counts_once(files: list[tuple[str, str]], links: list[tuple[str, str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        base = Path(name).resolve()
        root = base / "train"
        real = [root / "a" / "first.png", root / "b" / "first.png"]
        real += [root / label / below / f"{number}.png" for number, (label, below) in enumerate(files)]
        for path in real:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        store = outside(base, "stored.png")
        linked = False
        for number, (place, target) in enumerate(links):
            link, goal = root / place / f"link{number}", store if target == "store" else root / target
            if link.parent.is_dir():
                link.symlink_to(goal, target_is_directory=True)
                linked |= target == "store"
        found = scan_part(root).files
        assert sorted(map(os.path.realpath, found)) == sorted(
            map(str, [*real, *([store / "stored.png"] if linked else [])])
        )
        # Real files keep their class whatever links lead to them.
        assert {str(path) for path in real} <= set(found)


@pytest.mark.parametrize("shared", ["file", "class", "part", "name", "none"])
def test_images_in_both_parts_are_told(make_folder: MakeFolder, shared: str, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(per_class=2)
    train, val = root / "train", root / "val"
    if shared == "file":
        (val / "cat" / "0.png").unlink()
        (val / "cat" / "0.png").symlink_to(train / "cat" / "0.png")
    elif shared == "class":
        shutil.rmtree(val / "cat")
        (val / "cat").symlink_to(train / "cat")
    elif shared == "part":
        shutil.rmtree(val)
        val.symlink_to(train)
    elif shared == "name":
        (val / "cat" / "0.png").unlink()
        os.link(train / "cat" / "0.png", val / "cat" / "0.png")
    find_parts(str(root))
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    count = {"file": 1, "class": 2, "part": 4, "name": 1, "none": 0}[shared]
    assert len(told) == (shared != "none") and all(f"share {count} images" in line for line in told)


def test_what_is_left_out_is_counted_in_one_line(make_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    root = make_folder(per_class=1) / "train"
    for name in ("cat/a.txt", "cat/b.TXT", "dog/c.heic", "cat/._0.png", "cat/.DS_Store", "beside.png", ".git/0.png"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text("none")
    (root / "empty" / "deep").mkdir(parents=True)
    (root / "cat" / ".thumbnails").mkdir()
    (root / "cat" / ".thumbnails" / "0.png").write_text("none")
    with caplog.at_level(logging.INFO):
        part = scan_part(root)
    assert listed(part) == {"cat": ["cat/0.png"], "dog": ["dog/0.png"]}
    (line,) = (record.getMessage() for record in caplog.records)
    for said in ("3 files", ".txt 2", ".heic 1", "1 hidden image", "1 image in no class", "1 folder without", "empty"):
        assert said in line
    assert ".git" not in line and "\n" not in line


def test_nothing_is_said_where_nothing_is_left_out(make_folder: MakeFolder, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        find_parts(str(make_folder()))
    assert not caplog.records


def test_a_pipe_is_no_image(make_folder: MakeFolder) -> None:
    root = make_folder() / "train"
    os.mkfifo(root / "cat" / "pipe.png")
    with pytest.raises(DataError, match=r"^Expected `.*cat/pipe\.png` to be an image, but it is not a regular file$"):
        scan_part(root)


def test_a_folder_that_cannot_be_read_is_named(make_folder: MakeFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_folder() / "train"
    scandir = os.scandir

    def refusing(folder: str) -> Any:
        if str(folder).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refusing)  # Root, as which tests may run, can read everything.
    with pytest.raises(DataError, match="^Expected `.*cat` to be a folder that can be read, but Permission denied$"):
        scan_part(root)


@pytest.mark.parametrize("both", [False, True])
def test_one_class_only_is_refused(make_folder: MakeFolder, both: bool) -> None:
    root = make_folder(classes=("images",))
    with pytest.raises(DataError, match="of at least two classes, but it holds 'images' only; .* one level deeper$"):
        find_parts(str(root)) if both else scan_part(root / "val")


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


def test_a_byte_order_mark_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("cat\tPersian cat\ndog\tpug\n", encoding="utf-8-sig")
    assert readable_names(tmp_path, ("cat", "dog")) == ("Persian cat", "pug")


def test_a_tab_separates_names_of_folders_that_hold_spaces(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("big cat\tlion\n", encoding="utf-8")
    assert readable_names(tmp_path, ("big cat",)) == ("lion",)
