"""Paths as people type them."""

from __future__ import annotations

import os


def expanded(path: str | os.PathLike[str]) -> str:
    """Return a path with `~` and `~NAME` at its beginning replaced by that home; one that nobody has stays as it is.

    A shell does so only for words of their own: neither for `LABEL=~/run` nor for what stands in a file.
    """
    return os.path.expanduser(os.fspath(path))
