"""Say what a detector can find with a hold-out: before a run, at its start, and in the report afterwards."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from tllm_plugin.core.detectors import DETECTORS, Detector
from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.core.holdout import images_per_class
from tllm_plugin.core.power import CHANGED, PROBABILITY, Setting, can_simulate, images_needed, smallest_drop
from tllm_plugin.data.counts import training_counts
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.options import arguments
from tllm_plugin.hosts.switch import is_on

logger = logging.getLogger(__name__)

#: Drops of accuracy for which the necessary fraction is named.
DROPS = (0.10, 0.05)
_TOTAL_LOSS = 1.0
_told: set[str] = set()


@dataclass(frozen=True)
class Findable:
    """What can be found with a hold-out.

    Args:
        setting: The run.
        images: Hold-out images per class.
        smallest: Smallest sustained drop of accuracy that is flagged with 80 % probability; None if there is none.
        fractions: TLLM.HOLDOUT.FRACTION with which a drop is flagged, by drop; None where none would do. Empty where
            the numbers of training images are not known.
    """

    setting: Setting
    images: int
    smallest: float | None
    fractions: Mapping[float, float | None]

    @property
    def warning(self) -> str:
        """Why no class can ever be flagged, and what would do; empty if one can be."""
        if self.smallest is not None:
            return ""
        if not self.setting.judged_epochs:
            return (
                f"NOTHING CAN BE FLAGGED: the run has {self.setting.epochs} epochs, and `{self.setting.detector}` "
                f"flags no class during the first {self.setting.warmup_epochs} (TLLM.DETECTOR.WARMUP_EPOCHS)"
            )
        remedy = ""
        if self.fractions:
            fraction = self.fractions[_TOTAL_LOSS]
            remedy = "; no TLLM.HOLDOUT.FRACTION of these training images would do"
            if fraction is not None:
                remedy = f"; TLLM.HOLDOUT.FRACTION {fraction:g} is the least with which a total loss is flagged"
        return (
            f"NOTHING CAN BE FLAGGED: with {self.images} hold-out images of each of {self.setting.classes} classes, "
            f"`{self.setting.detector}` misses even a class that loses everything{remedy}"
        )

    def lines(self) -> list[str]:
        """Return what can be found, and which fractions would find more, one sentence each."""
        if self.warning:
            first = self.warning
        else:
            first = (
                f"hold-out of {self.images} images of each of {self.setting.classes} classes: {self.sentence()}; "
                "smaller drops are missed more often"
            )
        judged = self.fractions.items() if self.setting.judged_epochs else ()
        found = [_needed(drop, fraction, self.setting) for drop, fraction in judged if drop in DROPS]
        return [first, *([f"to find a sustained drop of {'; of '.join(found)}"] if found else [])]

    def sentence(self) -> str:
        """Return the smallest drop as a clause; there has to be one."""
        assert self.smallest is not None
        return (
            f"a class that loses {math.ceil(100 * self.smallest)} points of accuracy throughout the run is flagged "
            f"with {PROBABILITY:.0%} probability by `{self.setting.detector}` (ETA {self.setting.eta:g}, FDR "
            f"{self.setting.fdr:g})"
        )


def findable(setting: Setting, images: int, counts: Sequence[int] = ()) -> Findable:
    """Simulate what can be found.

    Args:
        setting: The run.
        images: Hold-out images per class, at least 2.
        counts: Training images per class, the hold-out among them; empty if they are not known.
    """
    fractions: dict[float, float | None] = {}
    if counts:
        # One image of a class has to be left to train on.
        most, total = min(counts) - 1, sum(counts)
        for drop in (_TOTAL_LOSS, *DROPS):
            found = images_needed(setting, drop, most) if setting.judged_epochs else None
            fractions[drop] = None if found is None else _fraction(found, len(counts), total)
    return Findable(setting, images, smallest_drop(setting, images), fractions)


def setting_of(node: Mapping[str, Any], classes: int, epochs: int, changed: float = CHANGED) -> Setting | None:
    """Return the setting that a `TLLM.DETECTOR` node describes; None for a detector that cannot be simulated.

    Args:
        node: `cfg.TLLM.DETECTOR`, or the options that `flags.json` holds with the name as TYPE.
        classes: C.
        epochs: Epochs of the run.
        changed: Fraction of images on which two equally good runs differ.
    """
    kind = node["TYPE"]
    if classes < 2 or kind not in DETECTORS:
        return None
    given = CfgNode({key: value for key, value in node.items() if key != "TYPE"})
    options = arguments(DETECTORS[kind].options, given)
    if not can_simulate(kind, options.get("score", "")):
        return None
    names = ("eta", "fdr", "warmup_epochs", "score")
    return Setting(classes, epochs, kind, **{name: options[name] for name in names}, changed=changed)


def planned(cfg: CfgNode, counts: Sequence[int] | None = None, changed: float = CHANGED) -> Findable | None:
    """Return what a config's run can find; None where that is not known before its data are read.

    Args:
        cfg: Checked config of the embedded host.
        counts: Training images per class; None to ask the data set.
        changed: Fraction of images on which two equally good runs differ.

    Raises:
        ConfigError, DataError: The data set's folder is not what it should be.
    """
    if not is_on(cfg) or cfg.TLLM.DETECTOR.TYPE not in DETECTORS:
        return None
    known = training_counts(cfg.DATASET.TYPE, cfg.DATASET.PATH) if counts is None else counts
    if known is None:
        return None
    setting = setting_of(cfg.TLLM.DETECTOR, len(known), cfg.SOLVER.EPOCHS, changed)
    images = images_per_class(cfg.TLLM.HOLDOUT.FRACTION, sum(known), len(known))
    return None if setting is None or images < 2 else findable(setting, images, known)


def tell(detector: Detector, node: CfgNode, counts: Tensor, epochs: int) -> str:
    """Log what a run can find, once in this process.

    Args:
        detector: Of the run.
        node: `cfg.TLLM`.
        counts: (C,) training images per class, the hold-out among them.
        epochs: Epochs of the run.

    Returns:
        The warning if nothing can be flagged, otherwise an empty string.
    """
    if not processes.is_main():
        return ""
    changed = CHANGED
    reference = getattr(detector, "reference", None)
    if reference is not None and len(reference):
        # Two equally good runs disagree about as often as one of them errs.
        changed = round(min(0.5, 1.0 - reference.mean_accuracy(reference.epochs[-1])), 2)
    setting = setting_of(node.DETECTOR, len(counts), epochs, changed)
    images = images_per_class(node.HOLDOUT.FRACTION, int(counts.sum()), len(counts))
    if setting is None or images < 2:
        return ""
    found = findable(setting, images, counts.tolist())
    _log(found)
    return found.warning


def tell_planned(cfg: CfgNode, counts: Sequence[int] | None = None) -> None:
    """Log what a config's run can find, once in this process, before its teacher and its reference are trained.

    Args:
        cfg: See `planned`.
        counts: See `planned`; nothing is said of a data set that cannot be counted.
    """
    try:
        found = planned(cfg, counts) if processes.is_main() else None
    except (ConfigError, DataError):  # What reads the data will say it.
        return
    if found is not None:
        _log(found)


def _log(found: Findable) -> None:
    for place, line in enumerate(found.lines()):
        if line not in _told:
            _told.add(line)
            logger.log(logging.WARNING if found.warning and not place else logging.INFO, "%s", line)


def _needed(drop: float, fraction: float | None, setting: Setting) -> str:
    points = f"{100 * drop:.0f} points, "
    if fraction is not None:
        return f"{points}TLLM.HOLDOUT.FRACTION {fraction:g} would do"
    if setting.score == "accuracy" and drop <= setting.eta:
        return f"{points}TLLM.DETECTOR.ETA has to be smaller than {setting.eta:g}"
    return f"{points}no fraction of these training images would do"


def _fraction(images: int, classes: int, total: int) -> float:
    """Return the smallest fraction of three digits with which a class has at least `images` in the hold-out."""
    fraction = math.ceil((images - 0.5) * classes / total * 1000) / 1000
    return fraction if images_per_class(fraction, total, classes) >= images else fraction + 0.001
