"""`tllm config keys`: list all config keys with default and meaning."""

from __future__ import annotations

import argparse
from typing import Any

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.console import say
from tllm_plugin.hosts.embedded.defaults import own_options
from tllm_plugin.hosts.options import table


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "config",
        help="print config keys with their defaults and meaning",
        description="Print the keys of TLLM, of its methods and of the embedded host, users' own detectors and methods "
        "included, and the [--flags] of RepDistiller that stand for them. mdistiller has other keys besides TLLM's.",
        epilog="Example: tllm config keys --grep detector",
    )
    parser.add_argument("what", choices=["keys"], help="what to print")
    parser.add_argument("--grep", default="", metavar="TEXT", help="only lines with this text; case does not matter")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Print a line for each key.

    Raises:
        TLLMError: No line contains the text of `--grep`.
    """
    own = own_options()
    lines = []
    for key, option in {**own, **table()}.items():
        flag = f" [--{option.flag}]" if option.flag and key not in own else ""
        lines.append(f"{key:<30} {option.default!r:<16} {option.help}{flag}")
    found = [line for line in lines if options.grep.lower() in line.lower()]
    if not found:
        raise TLLMError(f"Expected `--grep` to be part of a key, a default or a meaning, but got {options.grep!r}")
    for line in found:
        say(line)
