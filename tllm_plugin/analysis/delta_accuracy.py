"""Delta acc: per class, the accuracy of a distilled student minus that of a vanilla one."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.runs.metrics_file import MetricsRecord

Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class HurtClasses:
    """How many classes a run does worse on than a vanilla run.

    Args:
        count: Classes with delta acc < 0, as the paper counts.
        large: Classes with delta acc < -`LARGE`.
    """

    count: int
    large: int


#: A drop that is worth a column of its own: 5 points.
LARGE = 0.05


def delta_accuracy(distilled: MetricsRecord, vanilla: MetricsRecord) -> Vector:
    """Return (C,) test accuracy per class of `distilled` minus that of `vanilla`, a fraction.

    Raises:
        ConfigError: The runs were tested on different numbers of images.
    """
    if distilled.class_total != vanilla.class_total or not vanilla.class_total:
        raise ConfigError("Expected two runs tested on the same images, but their numbers per class differ")
    total = np.asarray(vanilla.class_total, dtype=np.float64)
    difference = np.asarray(distilled.class_correct, dtype=np.float64) - np.asarray(vanilla.class_correct)
    return np.asarray(difference / total)


def hurt_classes(distilled: MetricsRecord, vanilla: MetricsRecord) -> HurtClasses:
    """Count the classes that `distilled` does worse on than `vanilla`.

    The number means little by itself: two vanilla runs with different seeds "hurt" about half of the classes. Print
    it beside `hurt_classes(other_vanilla, vanilla)`.
    """
    delta = delta_accuracy(distilled, vanilla)
    # Far less than one image, so that a drop of exactly 5 points does not hang on the last bit of a division.
    slack = 1e-9
    return HurtClasses(count=int((delta < 0).sum()), large=int((delta < -LARGE - slack).sum()))
