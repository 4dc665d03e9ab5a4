"""Expand paths that users type."""

from __future__ import annotations

import os


def expanded(path: str | os.PathLike[str]) -> str:
    """Replace `~` or `~NAME` at the beginning of a path by the home folder; an unknown user's stays unchanged.

    A shell expands `~` only at the beginning of a word, so neither in `LABEL=~/run` nor inside a file.
    """
    return os.path.expanduser(os.fspath(path))
