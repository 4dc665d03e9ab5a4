"""Simulate which drops a detector can find with a hold-out, before anything is trained.

The simulated run has one class that the teacher makes worse by a drop, from the first judged epoch to the last. On
every class, `changed` of the hold-out images are answered differently by the two runs that are compared, half of them
better and half worse, as two runs that differ in nothing but their seed do; the drop comes on top of that. The same
images change at every epoch. Epochs then add no information to each other: smoothing changes nothing, and the evidence
at the end of the run is the e-value of one epoch. The margin that a drop must exceed (eta, common drop, spread) and the
e-value are computed by the functions of the detector.

Two assumptions are cautious: images that change from epoch to epoch give more evidence, and further hurt classes would
lower the threshold of each. One is not: the classes of two real runs differ by more than their images explain, above
all early in training, which raises the spread.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from tllm_plugin.core.arguments import number_in, whole_number
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import create_detector, detector_options
from tllm_plugin.core.detectors.sequential import SequentialDetector
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.evidence import betting_e_value
from tllm_plugin.core.predictions import Predictions

#: Probability with which a drop is to be flagged.
PROBABILITY = 0.8
#: Fraction of images on which two equally good runs differ, where nothing is known of them.
CHANGED = 0.2
_DRAWS = 600
# Other classes matter by the median and the spread of their drops, which more of them do not change.
_MOST_OTHERS = 100
_DROP_STEPS = 1000
# What a lost image costs: its rank falls from 1 to 2 at least, its probability by about half.
_LOST_SCORE = {"accuracy": 1.0, "reciprocal_rank": 0.5, "true_prob": 0.5}
_SIMULATED = ("reference", "imitation")


@dataclass(frozen=True)
class Setting:
    """Settings that determine which drops can be flagged.

    Args:
        classes: C, at least 2.
        epochs: Epochs of the run.
        detector: `reference` or `imitation`; `can_simulate` tells.
        eta: As in the detector.
        fdr: As in the detector.
        warmup_epochs: As in the detector.
        score: As in the detector; a lost image costs 1 by accuracy and 1/2 by the other scores.
        changed: Fraction of a class's images on which two equally good runs differ, in [0, 1).
    """

    classes: int
    epochs: int
    detector: str = "reference"
    eta: float = 0.05
    fdr: float = 0.05
    warmup_epochs: int = 10
    score: str = "accuracy"
    changed: float = CHANGED

    def __post_init__(self) -> None:
        whole_number("classes", self.classes, 2)
        whole_number("epochs", self.epochs, 1)
        number_in("changed", self.changed, 0, 1, open_high=True)
        if not can_simulate(self.detector, self.score):
            known = ", ".join(_SIMULATED)
            raise ConfigError(f"Expected `detector` to be one of {known}, but got {self.detector!r} by {self.score!r}")

    @property
    def judged_epochs(self) -> int:
        """Epochs after the warm-up; without any, nothing is ever flagged."""
        return max(0, self.epochs - self.warmup_epochs)


def can_simulate(detector: str, score: str) -> bool:
    """Return whether drops under a detector can be simulated."""
    return detector in _SIMULATED and (score in _LOST_SCORE or detector != "reference")


@lru_cache(maxsize=4096)
def flag_rate(setting: Setting, images: int, drop: float, seed: int = 0) -> float:
    """Return the probability that a class with a sustained drop of accuracy is flagged by the end of the run.

    Args:
        setting: The run.
        images: Hold-out images per class, at least 2.
        drop: Of accuracy, in [0, 1].
        seed: Of the simulation; equal seeds use the same images for all drops, so that the rate grows with the drop.

    >>> flag_rate(Setting(classes=5, epochs=100), images=8, drop=1.0)  # Not even a total loss.
    0.0
    """
    images, drop = whole_number("images", images, 2), number_in("drop", drop, 0, 1)
    if not setting.judged_epochs:
        return 0.0
    detector = _detector(setting)
    two_sided = setting.detector == "reference"
    cost = _LOST_SCORE[setting.score] if two_sided else 1.0
    others, hurt = _images(setting.classes, setting.changed, images, seed)
    # A class that lost more has fewer images left that change by chance.
    worse, better = drop + (1.0 - drop) * setting.changed / 2, (1.0 - drop) * setting.changed / 2
    losses = torch.cat([(hurt < worse).sum(1, keepdim=True), others[..., 0]], dim=1).double()
    gains = torch.cat([(hurt >= 1.0 - better).sum(1, keepdim=True), others[..., 1]], dim=1).double()
    if not two_sided:
        gains = torch.zeros_like(gains)  # An error is repeated or it is not.
    mean = cost * (losses - gains) / images
    variance = (cost**2 * (losses + gains) - images * mean**2) / ((images - 1) * images)
    shared, margin = detector.margin(mean, variance)
    if setting.fdr == 1.0:
        return float((mean[:, 0] > setting.eta + shared).double().mean())
    counts = torch.stack([losses[:, 0], gains[:, 0], images - losses[:, 0] - gains[:, 0]], dim=1)
    values = torch.tensor([cost, -cost, 0.0], dtype=torch.float64).repeat(_DRAWS)
    e_value = betting_e_value(values, torch.arange(_DRAWS).repeat_interleave(3), margin, counts.flatten())
    return float((e_value >= setting.classes / setting.fdr).double().mean())


def smallest_drop(setting: Setting, images: int, probability: float = PROBABILITY) -> float | None:
    """Return the smallest sustained drop of accuracy that is flagged with a probability, in tenths of a point.

    Args:
        setting: The run.
        images: Hold-out images per class.
        probability: In (0, 1).

    Returns:
        The drop, in (0, 1]; None if not even a total loss is flagged with this probability.
    """
    if flag_rate(setting, images, 1.0) < probability:
        return None
    low, high = 0, _DROP_STEPS
    while high - low > 1:
        middle = (low + high) // 2
        if flag_rate(setting, images, middle / _DROP_STEPS) < probability:
            low = middle
        else:
            high = middle
    return high / _DROP_STEPS


def images_needed(setting: Setting, drop: float, most: int, probability: float = PROBABILITY) -> int | None:
    """Return the fewest hold-out images per class with which a sustained drop is flagged with a probability.

    Args:
        setting: The run.
        drop: Of accuracy, in (0, 1].
        most: Images per class that there are.
        probability: In (0, 1).

    Returns:
        The number; None if `most` are too few.
    """
    if most < 2 or flag_rate(setting, most, drop) < probability:
        return None
    low, high = 1, most
    while high - low > 1:
        middle = (low + high) // 2
        if flag_rate(setting, middle, drop) < probability:
            low = middle
        else:
            high = middle
    return high


@lru_cache(maxsize=64)
def _detector(setting: Setting) -> SequentialDetector:
    """Return the detector for a run of one epoch."""
    values = {"total_epochs": 1, "eta": setting.eta, "fdr": setting.fdr, "warmup_epochs": 0, "score": setting.score}
    if "reference" in detector_options(setting.detector):
        labels = torch.arange(setting.classes)
        ones = torch.ones(setting.classes)
        curves = Curves(labels, setting.classes, labels)
        curves.append(1, Predictions(labels, labels, setting.classes, rank=ones.to(torch.uint8), true_prob=ones))
        values["reference"] = curves
    detector = create_detector(setting.detector, setting.classes, **values)
    assert isinstance(detector, SequentialDetector)
    return detector


@lru_cache(maxsize=2)
def _images(classes: int, changed: float, images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Draw losses and gains of the other classes, (n, k, 2), and uniforms of the hurt class's images, (n, m)."""
    generator = torch.Generator().manual_seed(seed)
    total = torch.full((_DRAWS, min(classes - 1, _MOST_OTHERS)), float(images), dtype=torch.float64)
    losses = torch.binomial(total, torch.full_like(total, changed / 2), generator)
    gains = torch.binomial(total - losses, torch.full_like(total, changed / (2 - changed)), generator)
    hurt = torch.rand(_DRAWS, images, generator=generator, dtype=torch.float64)
    return torch.stack([losses, gains], dim=-1), hurt
