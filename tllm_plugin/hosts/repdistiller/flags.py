"""Command line flags for options, from the table that the other hosts' config keys are made of."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.options import Option
from tllm_plugin.core.paths import expanded
from tllm_plugin.hosts.config_checks import lookup
from tllm_plugin.hosts.config_values import PATH_KEYS
from tllm_plugin.hosts.options import CONFIDENCE, OLD_FLAG, as_node, table


def tllm_options() -> dict[str, Option]:
    """Return the options of TLLM that have a flag, by full key."""
    return {key: option for key, option in table().items() if key.startswith("TLLM.") and option.flag}


def add_flags(parser: argparse.ArgumentParser, options: Mapping[str, Option]) -> None:
    """Add the flags of options, by full key, with the types and values of their defaults."""
    for key, option in options.items():
        default, described = option.default, option.help
        if isinstance(default, list):
            parser.add_argument(f"--{option.flag}", nargs="+", default=default, help=described)
            continue
        described += f" (default: {default})" if default != "" else ""
        kind: Any = _truth if isinstance(default, bool) else expanded if key in PATH_KEYS else type(default)
        parser.add_argument(f"--{option.flag}", type=kind, default=default, help=described)


def _truth(word: str) -> bool:
    if word not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"Expected True or False, but got {word!r}")
    return word == "True"


def config_of(namespace: Any, options: Mapping[str, Option]) -> CfgNode:
    """Return a config of options by full key, with the values that a parsed command line has of them."""
    cfg = as_node(options)
    for key, option in options.items():
        value = getattr(namespace, str(option.flag), None)
        if value is not None:
            parent, _, last = key.rpartition(".")
            lookup(cfg, parent)[last] = value
    return cfg


def name_flags(message: str, options: Mapping[str, Option]) -> str:
    """Return a message that names config keys between backquotes as one that names the flags for them."""
    for key, flag in (*((key, option.flag) for key, option in options.items()), (CONFIDENCE, OLD_FLAG)):
        message = message.replace(f"`{key}`", f"`--{flag}`")
    return message
