"""List the image files in the class folders of a part; every file is listed once, regardless of links."""

from __future__ import annotations

import os
import stat
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from torchvision.datasets.folder import IMG_EXTENSIONS

from tllm_plugin.core.errors import DataError

_SHOWN = 5

#: Device and number of a file: the same for all its names.
Identity = tuple[int, int]


@dataclass
class LeftOut:
    """Files and folders in a part that are not images of a class.

    Args:
        suffixes: Number of files per suffix that is not an image suffix.
        hidden: Number of images whose names begin with a dot.
        links: Number of links to images that are listed elsewhere.
        beside: Number of images outside class folders.
        folders: Names of folders without images, which are not classes.
    """

    suffixes: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    links: int = 0
    beside: int = 0
    folders: list[str] = field(default_factory=list)

    def line(self) -> str:
        """Return a description; empty if nothing was left out."""
        parts = []
        if self.suffixes:
            kinds = [f"{name or 'none'} {count}" for name, count in self.suffixes.most_common()]
            parts.append(f"{_counted(self.suffixes.total(), 'file')} for the suffix ({_listed(kinds)})")
        if self.hidden:
            parts.append(_counted(self.hidden, "hidden image"))
        if self.links:
            parts.append(f"{_counted(self.links, 'link')} to images that are counted already")
        if self.beside:
            parts.append(f"{_counted(self.beside, 'image')} in no class folder")
        if self.folders:
            folders = _counted(len(self.folders), "folder")
            parts.append(f"{folders} without an image of its own ({_listed(self.folders)})")
        return "; ".join(parts)


@dataclass
class Listing:
    """Images of a part.

    Args:
        files: Paths by class in the order of `ImageFolder`: classes by name, files by folder and then by name.
        left_out: Files and folders that are not images of a class.
        linked: Real paths of files with several names or reached through links.
    """

    files: dict[str, list[str]]
    left_out: LeftOut
    linked: dict[Identity, str]


def list_images(root: Path) -> Listing:
    """List the image files of every folder in `root`, including its subfolders.

    A file belongs to the folder of its real path; a link counts if it adds a file from elsewhere. Folders whose names
    begin with a dot are ignored.

    Args:
        root: Folder that contains the class folders.

    Raises:
        DataError: A folder cannot be read, or an entry with an image suffix is not a file.
    """
    search = _Search(root)
    names = []
    for entry in _entries(root):
        if os.path.isdir(entry.path):
            if not entry.name.startswith("."):
                names.append(entry.name)
        elif _is_image(entry.name):
            search.left_out.beside += 1
    # Real files first, so that a link never removes a file from the class of its folder.
    for name in names:
        if not (root / name).is_symlink():
            search.walk(name, str(root / name))
    for name in names:
        search.follow_links(name, str(root / name))
    files = {name: [os.path.join(*place) for place in sorted(search.found[name])] for name in names}
    search.left_out.folders = [name for name in names if not files[name]]
    return Listing({name: found for name, found in files.items() if found}, search.left_out, search.linked)


def count_shared(one: Listing, its_root: Path, other: Listing, others_root: Path) -> int:
    """Return the number of files that two parts have in common."""
    if os.path.realpath(its_root) == os.path.realpath(others_root):
        return sum(map(len, one.files.values()))
    shared = one.linked.keys() & other.linked.keys()
    for listing, root in ((one, others_root), (other, its_root)):
        inside = os.path.realpath(root) + os.sep
        shared |= {identity for identity, path in listing.linked.items() if path.startswith(inside)}
    return len(shared)


class _Search:
    def __init__(self, root: Path) -> None:
        self.left_out = LeftOut()
        #: Class -> (folder, name) of its images.
        self.found: dict[str, list[tuple[str, str]]] = {}
        #: Class -> (folder, name) of links that are yet to be followed.
        self.waiting: dict[str, deque[tuple[str, str]]] = {}
        self.paths: dict[Identity, str] = {}
        self.linked: dict[Identity, str] = {}
        self.behind_link = False
        # A link to the part itself or to a parent folder does not lead to images of one class.
        real = os.path.realpath(root)
        self.folders = {real, *map(str, Path(real).parents)}

    def walk(self, name: str, folder: str) -> None:
        """Add the images of a folder and its real subfolders to a class; links are collected for later."""
        found, waiting = self.found.setdefault(name, []), self.waiting.setdefault(name, deque())
        self.folders.add(os.path.realpath(folder))
        for entry in _entries(folder):
            is_folder = os.path.isdir(entry.path)
            if not is_folder and not _is_image(entry.name):
                if not entry.name.startswith("."):
                    self.left_out.suffixes[os.path.splitext(entry.name)[1].lower()] += 1
            elif entry.name.startswith("."):
                self.left_out.hidden += not is_folder
            elif entry.is_symlink():
                waiting.append((folder, entry.name))
            elif is_folder:
                self._enter(name, entry.path)
            elif self._is_new(entry.path):
                found.append((folder, entry.name))

    def follow_links(self, name: str, folder: str) -> None:
        """Add to a class the images that are reachable only through links; `folder` itself may be a link."""
        self.behind_link = True
        if name not in self.found:
            self.found[name] = []
            self._enter(name, folder)
        waiting = self.waiting.get(name, ())
        while waiting:
            place = waiting.popleft()
            path = os.path.join(*place)
            if os.path.isdir(path):
                self._enter(name, path)
            elif self._is_new(path):
                self.found[name].append(place)

    def _enter(self, name: str, folder: str) -> None:
        if os.path.realpath(folder) in self.folders:
            self.left_out.links += 1
        else:
            self.walk(name, folder)

    def _is_new(self, path: str) -> bool:
        try:
            status = os.stat(path)
        except OSError:
            return True  # A broken link is reported when the image is read.
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"Expected `{path}` to be an image, but it is not a regular file")
        identity = status.st_dev, status.st_ino
        earlier = self.paths.setdefault(identity, path)
        # Some file systems reuse inode numbers; files with a link count of 1 are distinct regardless.
        if earlier is not path and (status.st_nlink > 1 or os.path.realpath(earlier) == os.path.realpath(path)):
            self.left_out.links += 1
            return False
        if self.behind_link or status.st_nlink > 1:
            self.linked[identity] = os.path.realpath(path)
        return True


def _entries(folder: Path | str) -> Iterator[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            yield from sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        cause = error.strerror or error
        raise DataError(f"Expected `{folder}` to be a folder that can be read, but {cause}") from error


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMG_EXTENSIONS)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" + ("" if count == 1 else "s")


def _listed(names: list[str]) -> str:
    # File names may contain any character.
    shown = ", ".join(name if name.isprintable() else ascii(name) for name in names[:_SHOWN])
    return shown + (", ..." if len(names) > _SHOWN else "")
