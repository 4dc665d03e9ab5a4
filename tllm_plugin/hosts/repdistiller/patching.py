"""Apply our patches to a host's sources while they are imported; the files are not changed.

A hunk is found by its text, not by its line number, so that it fits a checkout with other changes. Lines that were
patched on disk already are left as they are.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from tllm_plugin.core.errors import ConfigError

# Further modules in which descendants define `accuracy`.
_ACCURACY = ("utils.py", "util.py", "helper/utils.py")


@dataclass(frozen=True)
class Hunk:
    """One replacement.

    Args:
        line: Where the old text begins in the pinned commit, counted from 1.
        old: Lines to be replaced, with the context around them.
        new: Lines that replace them.
    """

    line: int
    old: str
    new: str


def read_patches(paths: Iterable[Path]) -> dict[str, list[Hunk]]:
    """Return file -> its hunks, in the order of the patches."""
    found: dict[str, list[Hunk]] = {}
    for path in paths:
        for name, body in re.findall(
            r"^\+\+\+ b/(\S+)\n(.*?)(?=^diff |\Z)", path.read_text(encoding="utf-8"), re.M | re.S
        ):
            for line, lines in re.findall(r"^@@ -(\d+)[^\n]*\n(.*?)(?=^@@ |\Z)", body, re.M | re.S):
                rows = [row if row else " " for row in lines.splitlines()]
                sides = ("".join(f"{row[1:]}\n" for row in rows if row[0] in f" {sign}") for sign in "-+")
                found.setdefault(name, []).append(Hunk(int(line), *sides))
    return found


def apply_hunks(source: str, hunks: Sequence[Hunk], name: str) -> str:
    """Return a patched source.

    Args:
        source: As the checkout has it.
        hunks: For this file.
        name: Of the file, for the error.

    Raises:
        ConfigError: Neither a hunk's old text nor its new one is there.
    """
    for hunk in hunks:
        if hunk.old in hunk.new and hunk.new in source:
            continue  # Lines were only added, and they are there.
        places = [match.start() for match in re.finditer(f"^{re.escape(hunk.old)}", source, re.M)]
        if places:
            place = min(places, key=lambda start: abs(source.count("\n", 0, start) + 1 - hunk.line))
            source = source[:place] + hunk.new + source[place + len(hunk.old) :]
        elif hunk.new not in source:
            raise ConfigError(
                f"Expected {name} to be RepDistiller's of the pinned commit, but it lacks these lines:\n{hunk.old}"
                "take them over by hand, or use `tllm host install repdistiller`"
            )
    return source


def mend(source: str, hunks: Sequence[Hunk]) -> str:
    """Return the source of a host's module with those mends for current PyTorch that fit it."""
    for hunk in hunks:
        with suppress(ConfigError):
            source = apply_hunks(source, [hunk], "")
    # Since 1.7, PyTorch refuses this view, because its tensor is not contiguous.
    return re.sub(r"(\bcorrect\[:k\])\.view\(", r"\1.reshape(", source)


@contextmanager
def patched_imports(root: Path, patches: Mapping[str, Sequence[Hunk]]) -> Iterator[None]:
    """Let modules below `root` be imported from there, patched, for the duration of the block.

    Modules that were imported in the block stay as they are.
    """
    finder = _Finder(root, patches)
    sys.meta_path.insert(0, finder)
    sys.path.insert(0, str(root))
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        sys.path.remove(str(root))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, root: Path, patches: Mapping[str, Sequence[Hunk]]) -> None:
        self.root, self.patches = root, patches

    def find_spec(self, fullname: str, path: Any = None, target: ModuleType | None = None) -> Any:
        name = f"{fullname.replace('.', '/')}.py"
        if name not in {*self.patches, *_ACCURACY} or not (self.root / name).is_file():
            return None
        loader = _Loader(fullname, str(self.root / name), self.patches.get(name, ()))
        return importlib.util.spec_from_file_location(fullname, self.root / name, loader=loader)


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, fullname: str, path: str, hunks: Sequence[Hunk]) -> None:
        super().__init__(fullname, path)
        self.hunks = hunks

    def get_code(self, fullname: str) -> CodeType:
        # The base class would cache the patched code as the byte code of the unpatched file.
        source = Path(self.path).read_text(encoding="utf-8")
        code: CodeType = compile(mend(source, self.hunks), self.path, "exec")
        return code
