"""Complete the host's config after every merge: its script may freeze it at any time, or never.

After `settle`, `SOLVER.TRAINER` names the host's trainer, `~` in paths is expanded, and wandb is off if it cannot be
imported or does not start.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import yaml
from yacs.config import CfgNode

from tllm_plugin.hosts.config_checks import with_switch
from tllm_plugin.hosts.config_values import expand_paths
from tllm_plugin.hosts.switch import TRAINER, resolve

logger = logging.getLogger(__name__)

_MERGES = ("merge_from_list", "merge_from_other_cfg")


def settle_merges(cfg: CfgNode) -> None:
    """Call `settle` after each merge into `cfg`, but not into copies of it; a second call changes nothing."""
    resolved: dict[str, Any] = {}

    def settled(merge: Callable[..., None]) -> Callable[..., None]:
        @wraps(merge)
        def merge_and_settle(node: CfgNode, *given: Any, **named: Any) -> None:
            if node is not cfg:
                merge(node, *given, **named)
                return
            if resolved and resolved["to"] == cfg.SOLVER.TRAINER:
                # The next merge may name another TLLM.TRAINER, or another trainer of the host.
                cfg.SOLVER.TRAINER, cfg.TLLM.ON = TRAINER, resolved["on"]
            resolved.clear()
            merge(node, *given, **named)
            before = cfg.TLLM.ON
            if cfg.SOLVER.get("TRAINER") == TRAINER:
                resolve(cfg)
                resolved.update(to=cfg.SOLVER.TRAINER, on=before)
            settle(cfg)

        return merge_and_settle

    read = CfgNode.merge_from_file
    if not hasattr(read, "__wrapped__"):

        @wraps(read)
        def merge_file(node: CfgNode, path: str) -> None:
            is_yaml = Path(path).suffix in (".yaml", ".yml")
            loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8")) if is_yaml else None
            if (known := with_switch(loaded)) is loaded:
                read(node, path)
            else:
                node.merge_from_other_cfg(CfgNode(known))

        CfgNode.merge_from_file = settled(merge_file)
    for name in _MERGES:
        merge = getattr(CfgNode, name)
        if not hasattr(merge, "__wrapped__"):
            setattr(CfgNode, name, settled(merge))


def settle(cfg: CfgNode) -> list[str]:
    """Complete a merged config that is not frozen; return the problems of its paths."""
    resolve(cfg)
    log = cfg.get("LOG", {})
    if log.get("WANDB", False) and not _wandb_is_usable():
        log.WANDB = False  # The host tries to do so itself when its config is frozen.
    return expand_paths(cfg)


def _wandb_is_usable() -> bool:
    """Return whether wandb can be imported; if it later fails to start, it is switched off then."""
    if importlib.util.find_spec("wandb") is None:
        return False
    try:
        wandb: Any = importlib.import_module("wandb")
        start = wandb.init
    except Exception as error:  # Its modules raise anything.
        logger.warning("wandb cannot be imported (%s); the run goes on without it", error)
        return False
    if not hasattr(start, "__wrapped__"):

        @wraps(start)
        def init(*given: Any, **named: Any) -> Any:
            try:
                return start(*given, **named)
            except Exception as error:
                logger.warning("wandb does not start (%s); the run goes on without it", " ".join(str(error).split()))
                cfg = importlib.import_module("mdistiller.engine.cfg").CFG
                dict.__setitem__(cfg.LOG, "WANDB", False)  # It is frozen by now.
                return None

        wandb.init = init
    return True
