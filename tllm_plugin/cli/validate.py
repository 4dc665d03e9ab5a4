"""`tllm validate`: report all errors of configs at once, without running anything."""

from __future__ import annotations

import argparse

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.hosts.console import say
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.power import planned


def run(options: argparse.Namespace) -> None:
    """Check every file.

    Raises:
        ConfigError: At least one file has problems; the message lists all of them.
    """
    problems = []
    for path in options.cfgs:
        try:
            cfg = load_config(path)
        except ConfigError as error:
            problems += [f"{path}: {line}" for line in str(error).splitlines()]
        else:
            say(f"{path}: fine")
            for line in _findable(cfg):
                say(f"{path}: {line}")
    if problems:
        count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError("\n".join([f"{count}, read as configs of the embedded host", *problems]))


def _findable(cfg: CfgNode) -> list[str]:
    """Return what the run can find; nothing where the data are not on this machine."""
    try:
        found = planned(cfg)
    except (ConfigError, DataError):
        return []
    return [] if found is None else found.lines()
