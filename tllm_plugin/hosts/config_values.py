"""Check config values independently of their keys: they must be usable, and unchanged by writing and reading."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable
from typing import Any

import torch
from yacs.config import CfgNode

from tllm_plugin.core.paths import expanded
from tllm_plugin.hosts.config_checks import flat, lookup, shown

#: Keys of paths. Paths of data sets are not expanded here, because digests of runs contain them as typed.
PATH_KEYS = ("LOG.PREFIX", "DISTILLER.TEACHER_CHECKPOINT", "TLLM.DETECTOR.REFERENCE")
_LARGEST_INT = torch.iinfo(torch.int64).max
_LARGEST_FLOAT = torch.finfo(torch.float32).max
# C0 and C1 controls, line separators, bidirectional controls and surrogates.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udc7f\udd00-\udfff]")
# Lengths in bytes: file systems allow 255 per part, and locks and searches append to names.
_LONGEST_PART, _LONGEST_PREFIX_PART, _LONGEST_PATH = 200, 255, 2000


def check_values(cfg: CfgNode, known: Iterable[str] = ()) -> list[str]:
    """Return a sentence for every value that is too large to compute with, or contains control characters.

    Args:
        cfg: Merged config.
        known: Problems found so far, whose keys are not reported again.
    """
    problems = []
    for key, value in flat(cfg):
        expected = _expected(value)
        if expected is not None and not any(f"`{key}`" in problem for problem in known):
            problems.append(f"Expected `{key}` to be {expected}, but got {shown(value)}")
    return problems


def check_names(cfg: CfgNode, keys: Iterable[str]) -> list[str]:
    """Return a sentence for every name that is not a valid folder below LOG.PREFIX; empty names are ignored."""
    problems = []
    for key in keys:
        name = str(lookup(cfg, key))
        parts = name.split("/")
        if name and (any(part in ("", ".", "..") for part in parts) or os.path.isabs(name)):
            problems.append(f"Expected `{key}` to be the name of a folder below LOG.PREFIX, but got {shown(name)}")
        elif any(len(os.fsencode(part)) > _LONGEST_PART for part in parts) or len(name) > _LONGEST_PATH:
            problems.append(f"Expected `{key}` to have at most {_LONGEST_PART} bytes in a part, but got {shown(name)}")
    prefix = str(cfg.LOG.PREFIX)
    if len(prefix) > _LONGEST_PATH or any(len(os.fsencode(part)) > _LONGEST_PREFIX_PART for part in prefix.split("/")):
        problems.append(f"Expected `LOG.PREFIX` to be a path that file systems take, but got {shown(prefix)}")
    return problems


def expand_paths(cfg: CfgNode) -> list[str]:
    """Expand `~` in all paths of an unfrozen config; return a sentence for each unknown user."""
    problems = []
    classes = cfg.TLLM.DETECTOR.CLASSES
    if len(classes) == 1 and str(classes[0]).endswith(".json"):
        cfg.TLLM.DETECTOR.CLASSES = [expanded(str(classes[0]))]
    for key in (*PATH_KEYS, "DATASET.PATH"):
        parent, _, name = key.rpartition(".")
        if parent.partition(".")[0] not in cfg or name not in lookup(
            cfg, parent
        ):  # Some hosts lack some of these keys.
            continue
        path = expanded(str(lookup(cfg, key)))
        if path.startswith("~"):
            problems.append(
                f"Expected `{key}` to begin with the home of a user, but got {shown(path)}; for a folder of "
                "that name write ./~"
            )
        elif key in PATH_KEYS:
            lookup(cfg, parent)[name] = path
    return problems


def _expected(value: Any) -> str | None:
    if isinstance(value, (list, tuple)):
        if not all(isinstance(item, (str, int, float)) for item in value):
            return "a list of names or numbers"
        return next((f"a list of {found}" for found in map(_expected, value) if found is not None), None)
    if isinstance(value, str) and _CONTROL.search(value):
        return "text without control characters"
    if isinstance(value, int) and abs(value) > _LARGEST_INT:
        return f"at most {_LARGEST_INT}, without its sign"
    if isinstance(value, float) and not (math.isfinite(value) and abs(value) <= _LARGEST_FLOAT):
        return f"a finite number of at most {_LARGEST_FLOAT:.3g}, without its sign"
    return None
