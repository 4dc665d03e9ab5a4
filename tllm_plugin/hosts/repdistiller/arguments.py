"""A student's command line as far as a search needs to know it, read without the host's own parser."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import dataclass

from yacs.config import CfgNode

from tllm_plugin.core.paths import expanded
from tllm_plugin.data.class_order import NATURAL
from tllm_plugin.hosts.config_checks import lookup, merge_options
from tllm_plugin.hosts.options import CONFIDENCE, OLD_FLAG, accept_confidence, settle_fdr
from tllm_plugin.hosts.repdistiller.flags import name_flags, tllm_options
from tllm_plugin.hosts.tllm_node import check_tllm, tllm_node

_PATHS = ("path_t", "data_folder", "class_order")
_HOST_EPOCHS = 240  # The host's default.


@dataclass(frozen=True)
class StudentArguments:
    """The parts of the arguments of `train_student.py`.

    Args:
        node: The `TLLM` config node that the flags describe.
        epochs: Of the run; the host's default where they are not named.
        seed: `--tllm_seed`, if it is named.
        paths: Flags that name files and folders, with what they name.
        others: All other words, as they are.
    """

    node: CfgNode
    epochs: int
    seed: int | None
    paths: tuple[tuple[str, str], ...]
    others: tuple[str, ...]

    def words(self, *, absolute: bool) -> list[str]:
        """Return the arguments but for TLLM's flags, with absolute paths if asked for."""
        # An order may be the name of one instead of a file.
        named = [
            (name, os.path.abspath(expanded(path)) if absolute and path != NATURAL else path)
            for name, path in self.paths
        ]
        seed = [] if self.seed is None else ["--tllm_seed", str(self.seed)]
        return [*self.others, *(word for name, path in named for word in (f"--{name}", path)), *seed]


def split_arguments(arguments: Sequence[str]) -> tuple[StudentArguments, list[str]]:
    """Tell TLLM's flags from the host's own arguments.

    Args:
        arguments: Of `train_student.py`.

    Returns:
        The parts, and every problem, one sentence each.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("--tllm", action="store_true")
    parser.add_argument("--tllm_seed", type=int)
    parser.add_argument("--epochs", type=int)
    for name in _PATHS:
        parser.add_argument(f"--{name}", default="")
    cfg = CfgNode({"TLLM": tllm_node()})
    accept_confidence(cfg.TLLM)
    flags = {key: str(option.flag) for key, option in tllm_options().items()} | {CONFIDENCE: OLD_FLAG}
    for key, flag in flags.items():
        several = {"nargs": "+"} if isinstance(lookup(cfg, key), list) else {}
        parser.add_argument(f"--{flag}", **several)  # type: ignore[arg-type]
    try:
        found, others = parser.parse_known_args(list(arguments))
    except argparse.ArgumentError as error:
        return StudentArguments(cfg.TLLM, _HOST_EPOCHS, None, (), ()), [f"Expected other arguments, but {error}"]
    problems = []
    for key, flag in flags.items():
        value = getattr(found, flag)
        if isinstance(value, list):
            lookup(cfg, key.rpartition(".")[0])[key.rpartition(".")[2]] = value
        elif value is not None:
            problems += merge_options(cfg, [key, value])
    problems += settle_fdr(cfg.TLLM) + check_tllm(cfg)
    problems = [name_flags(problem, tllm_options()) for problem in problems]
    if not found.path_t:
        problems.append("Expected `--path_t` to name the teacher's checkpoint, but got none")
    if cfg.TLLM.DETECTOR.REFERENCE:
        cfg.TLLM.DETECTOR.REFERENCE = os.path.abspath(expanded(cfg.TLLM.DETECTOR.REFERENCE))
    paths = tuple((name, getattr(found, name)) for name in _PATHS if getattr(found, name))
    if found.epochs is not None:
        others += ["--epochs", str(found.epochs)]
    return StudentArguments(cfg.TLLM, found.epochs or _HOST_EPOCHS, found.tllm_seed, paths, tuple(others)), problems


def flags_of(node: CfgNode) -> list[str]:
    """Return the flags that describe a `TLLM` node."""
    words = ["--tllm"]
    for key, option in tllm_options().items():
        value = lookup(node, key.partition(".")[2])
        if isinstance(value, list | tuple):
            words += [f"--{option.flag}", *map(str, value)] if value else []
        elif value != "":
            words += [f"--{option.flag}", str(value)]
    return words
