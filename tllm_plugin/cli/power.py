"""`tllm power`: print which drops a hold-out can reveal, before anything is trained."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence

from rich.table import Table
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.holdout import MIN_PER_CLASS, images_per_class
from tllm_plugin.core.power import PROBABILITY
from tllm_plugin.data.counts import training_counts
from tllm_plugin.hosts.config_checks import merge_options, refuse
from tllm_plugin.hosts.console import PlainConsole, say
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.power import findable, planned, setting_of

_FRACTIONS = (0.02, 0.05, 0.1, 0.15, 0.2, 0.3, 0.5)


def run(options: argparse.Namespace) -> None:
    """Simulate the detector and print the smallest drops that it flags.

    Raises:
        ConfigError: The config has problems, or its detector cannot be simulated.
        DataError: The data set cannot be counted.
    """
    if (options.classes is None) != (options.images is None):
        raise ConfigError("Expected `--classes` and `--images` together, but got one of them alone")
    if options.cfg is None and options.classes is None:
        options.parser.error("one of the arguments --cfg and --classes is required")
    if options.classes is not None and (options.classes < 2 or options.images < 2):
        raise ConfigError("Expected `--classes` and `--images` to be at least 2")
    cfg = load_config(options.cfg, options.opts) if options.cfg is not None else _default(options.opts)
    counts = None if options.classes is None else [options.images] * options.classes
    counts = counts or training_counts(cfg.DATASET.TYPE, cfg.DATASET.PATH)
    if counts is None:
        raise ConfigError(
            f"Expected a data set whose images can be counted, but got {cfg.DATASET.TYPE!r}; --classes and --images "
            "state what it has"
        )
    found = planned(cfg, counts, options.changed)
    if found is None:
        raise ConfigError(
            "Expected SOLVER.TRAINER tllm with a detector that can be simulated (reference, imitation) and a hold-out, "
            f"but got {cfg.SOLVER.TRAINER} with {cfg.TLLM.DETECTOR.TYPE}"
        )
    for line in found.lines():
        say(line)
    if found.setting.judged_epochs:
        PlainConsole().print(_table(cfg, counts, options.changed))


def _default(opts: Sequence[str]) -> CfgNode:
    cfg = default_config()
    cfg.SOLVER.TRAINER = "tllm"
    refuse(merge_options(cfg, opts))
    return cfg


def _table(cfg: CfgNode, counts: Sequence[int], changed: float) -> Table:
    """Return one row per size of the hold-out."""
    table = Table(title="smallest sustained drop that is flagged, by TLLM.HOLDOUT.FRACTION", title_justify="left")
    for name in ("fraction", "hold-out images per class", f"drop flagged with {PROBABILITY:.0%} probability"):
        table.add_column(name, justify="right")
    setting = setting_of(cfg.TLLM.DETECTOR, len(counts), cfg.SOLVER.EPOCHS, changed)
    assert setting is not None
    for fraction in sorted({*_FRACTIONS, cfg.TLLM.HOLDOUT.FRACTION}):
        images = images_per_class(fraction, sum(counts), len(counts))
        if MIN_PER_CLASS <= images < min(counts):
            smallest = findable(setting, images).smallest
            drop = "none" if smallest is None else f"{math.ceil(100 * smallest)} points"
            table.add_row(f"{fraction:g}", str(images), drop)
    return table
