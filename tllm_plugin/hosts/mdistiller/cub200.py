"""CUB-200-2011 for mdistiller, as `DATASET.TYPE: "cub200"` with `DATASET.PATH`."""

from __future__ import annotations

from functools import wraps
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.photographs import cub200_loaders

TYPE = "cub200"


def offer_cub200(dataset: Any) -> None:
    """Let the host's `get_dataset` know the data set; a second call changes nothing.

    A script that has imported the function before keeps the old one: with our launcher it has not, and our patch
    imports it again.
    """
    original = getattr(dataset, "get_dataset", None)
    if original is None or hasattr(original, "__wrapped__"):
        return

    @wraps(original)
    def get_dataset(cfg: CfgNode) -> tuple[Any, Any, int, int]:
        if cfg.DATASET.TYPE != TYPE:
            found: tuple[Any, Any, int, int] = original(cfg)
            return found
        if cfg.DISTILLER.TYPE == "CRD":
            raise ConfigError(f"Expected `DATASET.TYPE` to be a data set of the host's for CRD, but got {TYPE!r}")
        return cub200_loaders(
            cfg.DATASET.PATH,
            batch_size=cfg.SOLVER.BATCH_SIZE,
            test_batch_size=cfg.DATASET.TEST.BATCH_SIZE,
            num_workers=cfg.DATASET.NUM_WORKERS,
        )

    dataset.get_dataset = get_dataset
