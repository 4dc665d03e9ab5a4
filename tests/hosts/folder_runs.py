"""Configs of short runs of the embedded host on a folder of small images."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from tests.hosts.digits_runs import CONFIG
from tllm_plugin.hosts.embedded.config import load_config

VANILLA = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", "vanilla")
BASE = (
    *("SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "20", "TLLM.HOLDOUT.FRACTION", "0.25", "DATASET.TYPE", "imagefolder"),
    *("DATASET.IMAGE_SIZE", "8", "DATASET.NUM_WORKERS", "0", "TLLM.DETECTOR.WARMUP_EPOCHS", "0"),
)


def config(images: Path, *options: str) -> CfgNode:
    """Return the config of a run on `images`, logging beside them."""
    return load_config(CONFIG, [*BASE, "DATASET.PATH", str(images), "LOG.PREFIX", str(images.parent / "out"), *options])
