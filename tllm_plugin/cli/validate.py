"""`tllm validate`: report all errors of configs at once, without running anything."""

from __future__ import annotations

import argparse

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.console import say
from tllm_plugin.hosts.embedded.config import load_config


def run(options: argparse.Namespace) -> None:
    """Check every file.

    Raises:
        ConfigError: At least one file has problems; the message lists all of them.
    """
    problems = []
    for path in options.cfgs:
        try:
            load_config(path)
        except ConfigError as error:
            problems += [f"{path}: {line}" for line in str(error).splitlines()]
        else:
            say(f"{path}: fine")
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{count}, read as configs of the embedded host", *problems]))
