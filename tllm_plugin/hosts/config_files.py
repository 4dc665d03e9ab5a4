"""Find the packaged YAML files, in a checkout and in an installed wheel."""

from __future__ import annotations

import difflib
import os
from pathlib import Path, PurePath

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.paths import expanded

_MOST_NEAR = 6
_PACKAGE = Path(__file__).resolve().parents[1]


def list_configs() -> list[str]:
    """Return the sorted paths of all packaged configs, relative to `configs/`."""
    folder = _configs_folder()
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.yaml"))


def find_config(path: str | os.PathLike[str]) -> Path:
    """Return the config file at `path`, or the packaged config of that name.

    Args:
        path: Path of a file, or an entry of `list_configs()` with or without the prefix `configs/`, so that documented
            commands work in any folder.

    Raises:
        ConfigError: There is no such config; the message lists similar names.
    """
    try:
        named = Path(expanded(path))
        if named.is_file():
            return named
        problem = "that is a folder" if named.is_dir() else "there is no such file"
    except (OSError, ValueError) as error:  # The name is too long or contains a NUL character.
        problem = f"it cannot be read ({error})"
    name = PurePath(path).as_posix().removeprefix("configs/")
    known = list_configs()
    if name in known:
        return _configs_folder() / name
    raise ConfigError(f"Expected `cfg` to be a YAML file, but got {str(path)!r}: {problem}; {_suggest(name, known)}")


def _configs_folder() -> Path:
    """Return the folder of the packaged configs: inside the package of a wheel, beside it in a checkout."""
    packaged = _PACKAGE / "configs"
    return packaged if packaged.is_dir() else _PACKAGE.parent / "configs"


def _suggest(name: str, known: list[str]) -> str:
    inside = _overview(known, f"{name.rstrip('/')}/")
    if inside:
        return f"in that folder are {', '.join(inside)}"
    wanted = PurePath(name).name
    by_file_name = difflib.get_close_matches(wanted, {PurePath(item).name for item in known}, n=3, cutoff=0.8)
    near = [item for item in known if PurePath(item).name in by_file_name]
    # Among files of one name, prefer those in similar folders.
    near.sort(key=lambda item: -difflib.SequenceMatcher(None, name, item).ratio())
    near += [item for item in difflib.get_close_matches(name, known, n=3) if item not in near]
    if near:
        return f"configs of a similar name: {', '.join(near[:_MOST_NEAR])}"
    return f"configs that come with TLLM: {', '.join(_overview(known, 'tllm/')) or 'none'}"


def _overview(known: list[str], folder: str) -> list[str]:
    """Return the configs in a packaged folder, and its subfolders with their numbers of configs."""
    counts: dict[str, int] = {}
    for item in known:
        if item.startswith(folder):
            first, slash, _ = item.removeprefix(folder).partition("/")
            entry = f"{folder}{first}{slash}"
            counts[entry] = counts.get(entry, 0) + 1
    return [f"{entry} ({count})" if entry.endswith("/") else entry for entry, count in counts.items()]
