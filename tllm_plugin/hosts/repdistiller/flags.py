"""Command line flags that stand for keys of config nodes."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.paths import expanded
from tllm_plugin.hosts.config_checks import lookup


@dataclass(frozen=True)
class Flag:
    """A flag for one key of a config node.

    Args:
        name: Without the dashes.
        key: Dotted, below the node.
        help: In the host's style.
    """

    name: str
    key: str
    help: str


def add_flags(parser: argparse.ArgumentParser, flags: Iterable[Flag], defaults: CfgNode) -> None:
    """Add flags with the types and values of `defaults`."""
    for flag in flags:
        default = lookup(defaults, flag.key)
        if isinstance(default, list):
            parser.add_argument(f"--{flag.name}", nargs="+", default=default, help=flag.help)
        else:
            described = f"{flag.help} (default: {default})" if default != "" else flag.help
            kind: Any = _truth if isinstance(default, bool) else type(default)
            if flag.key == "DETECTOR.REFERENCE":
                kind = expanded
            parser.add_argument(f"--{flag.name}", type=kind, default=default, help=described)


def _truth(word: str) -> bool:
    if word not in ("True", "False"):
        raise argparse.ArgumentTypeError(f"Expected True or False, but got {word!r}")
    return word == "True"


def set_key(node: CfgNode, key: str, value: Any) -> None:
    """Set the value of a dotted key."""
    *parents, last = key.split(".")
    for name in parents:
        node = node[name]
    node[last] = value


def name_flags(message: str, flags: Iterable[Flag], prefix: str = "") -> str:
    """Return a message about config keys as one about flags.

    Args:
        message: Names keys between backquotes.
        flags: For these keys.
        prefix: What stands before the keys in the message, as in `TLLM.`.
    """
    for flag in flags:
        message = message.replace(f"`{prefix}{flag.key}`", f"`--{flag.name}`")
    return message
