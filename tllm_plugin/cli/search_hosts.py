"""Create the search of each host from the command line of `tllm search`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.checkouts import locate, make_importable
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.repdistiller.arguments import split_arguments
from tllm_plugin.search.embedded import EmbeddedSearch
from tllm_plugin.search.eta_search import check_config
from tllm_plugin.search.host import SearchHost
from tllm_plugin.search.mdistiller import MdistillerSearch
from tllm_plugin.search.repdistiller import RepDistillerSearch
from tllm_plugin.search.space import Dimension


@dataclass(frozen=True)
class Opened:
    """Host of a search, opened from a command line.

    Args:
        cfg: Config with a node TLLM, on which the search space is defined.
        problems: Error messages.
        search: Creates the host for a search space; usable if there are no problems.
    """

    cfg: CfgNode
    problems: list[str]
    search: Callable[[Sequence[Dimension]], SearchHost]


def _embedded(options: argparse.Namespace, opts: Sequence[str]) -> Opened:
    words = ["--cfg", options.cfg, *opts]
    try:
        cfg, problems = load_config(options.cfg, opts), []
    except ConfigError as error:
        # The space is checked as well, so that all errors are reported together.
        cfg, problems = default_config(), str(error).splitlines()
        cfg.SOLVER.TRAINER, cfg.DISTILLER.TYPE = "tllm", "KD"
    problems += check_config(cfg)
    return Opened(cfg, problems, lambda space: EmbeddedSearch(cfg, space, options.checkpoint_every or 0, words))


def _mdistiller(options: argparse.Namespace, opts: Sequence[str]) -> Opened:
    make_importable(locate("mdistiller"))
    # This import registers TLLM in the host, which must be importable by then.
    from tllm_plugin.hosts.mdistiller.launch import load_config as load

    words = ["--cfg", options.cfg, *opts]
    cfg, problems = load(options.cfg, opts)
    if not problems:
        problems = check_config(cfg)
    cfg.freeze()
    return Opened(cfg, problems, lambda space: MdistillerSearch(cfg, space, options.checkpoint_every or 1, words))


def _repdistiller(options: argparse.Namespace, opts: Sequence[str]) -> Opened:
    root = locate("repdistiller")
    arguments, problems = split_arguments(opts)
    cfg = CfgNode({"TLLM": arguments.node})
    return Opened(cfg, problems, lambda space: RepDistillerSearch(arguments, space, root))


HOSTS: dict[str, Callable[[argparse.Namespace, Sequence[str]], Opened]] = {
    "embedded": _embedded,
    "mdistiller": _mdistiller,
    "repdistiller": _repdistiller,
}
