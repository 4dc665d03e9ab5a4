"""`tllm config keys`: list the config keys with default and meaning."""

from __future__ import annotations

import argparse

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.console import say
from tllm_plugin.hosts.embedded.defaults import default_config, own_options
from tllm_plugin.hosts.options import table
from tllm_plugin.search.space import searchable_keys


def run(options: argparse.Namespace) -> None:
    """Print one line per key.

    Raises:
        TLLMError: No line contains the text of `--grep`.
    """
    own, searchable = own_options(), searchable_keys(default_config())
    lines = []
    for key, option in {**own, **table()}.items():
        if options.searchable and key not in searchable:
            continue
        flag = f" [--{option.flag}]" if option.flag and key not in own else ""
        lines.append(f"{key:<30} {option.default!r:<16} {option.help}{flag}")
    found = [line for line in lines if options.grep.lower() in line.lower()]
    if not found:
        raise TLLMError(f"Expected `--grep` to occur in a key, its default or its meaning, but got {options.grep!r}")
    for line in found:
        say(line)
