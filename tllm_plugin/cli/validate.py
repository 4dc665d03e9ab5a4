"""`tllm validate`: report all errors of configs at once, without running anything."""

from __future__ import annotations

import argparse
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.hosts.console import say
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.power import planned


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "validate",
        help="report all errors of configs of the embedded host, without running them",
        description=(
            "Report all errors of configs of the embedded host, each with the key's full name; nothing is run. Configs "
            "of the other hosts, which `tllm train` takes with --host, have keys and values of their own."
        ),
        epilog="Example: tllm validate configs/tllm/embedded/*.yaml",
    )
    parser.add_argument("cfgs", nargs="+", metavar="CFG", help="YAML files")
    parser.set_defaults(run=run)


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
