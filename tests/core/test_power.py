"""Claims about what can be found, against the real detector run epoch by epoch on planted drops."""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binomtest
from torch import Tensor

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import create_detector
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.evidence import betting_e_value
from tllm_plugin.core.power import PROBABILITY, Setting, flag_rate, images_needed, smallest_drop
from tllm_plugin.core.predictions import Predictions

RUNS, EPOCHS, WARMUP = 100, 3, 1


def planted(setting: Setting, images: int, drop: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return which samples the vanilla run and the taught run get right, (n,) bool each; class 0 lost `drop`.

    Written from the description of the model, not from its code: every image is unchanged, lost or gained.
    """
    hurt = torch.arange(setting.classes).repeat_interleave(images) == 0
    better = torch.where(hurt, (1 - drop) * setting.changed / 2, setting.changed / 2)
    worse = torch.where(hurt, drop + better, better)
    uniform = torch.rand(len(hurt), generator=generator)
    lost, gained = uniform < worse, (uniform >= worse) & (uniform < worse + better)
    vanilla = torch.where(lost | gained, lost, torch.rand(len(hurt), generator=generator) < 0.7)
    return vanilla, torch.where(lost | gained, gained, vanilla)


def as_samples(setting: Setting, labels: Tensor, right: Tensor, teacher: Tensor | None = None) -> Predictions:
    rank = torch.where(right, 1, 2).to(torch.uint8)
    samples = Predictions(labels, torch.where(right, labels, -1), setting.classes, rank, right.float())
    if teacher is not None:
        samples = Predictions(labels, samples.prediction, setting.classes, rank, right.float(), agree=teacher)
    return samples


def frequency(setting: Setting, images: int, drop: float, *, flicker: bool = False) -> int:
    """Return in how many of `RUNS` runs the real detector flags class 0, epoch by epoch."""
    labels = torch.arange(setting.classes).repeat_interleave(images)
    flagged = 0
    for seed in range(RUNS):
        generator = torch.Generator().manual_seed(1000 + seed)
        both = [planted(setting, images, drop, generator)]
        both += [planted(setting, images, drop, generator) if flicker else both[0] for _ in range(EPOCHS - 1)]
        reference = Curves(labels, setting.classes, torch.arange(labels.numel()))
        for epoch, (vanilla, _) in enumerate(both, start=1):
            reference.append(epoch, as_samples(setting, labels, vanilla))
        options = {"eta": setting.eta, "fdr": setting.fdr, "warmup_epochs": WARMUP, "total_epochs": EPOCHS}
        if setting.detector == "reference":
            options |= {"reference": reference, "score": setting.score}
        detector = create_detector(setting.detector, setting.classes, **options)
        for epoch, (vanilla, taught) in enumerate(both, start=1):
            # For `imitation` a lost image is one on which the teacher makes the same error.
            repeats = (vanilla & ~taught) if setting.detector == "imitation" else None
            right = taught if repeats is None else ~repeats
            detector.update(epoch, as_samples(setting, labels, right, repeats))
        flagged += bool(detector.flags[0])
    return flagged


CASES = [
    (Setting(classes=10, epochs=EPOCHS, warmup_epochs=WARMUP), 24),
    (Setting(classes=40, epochs=EPOCHS, warmup_epochs=WARMUP, changed=0.1), 25),
    (Setting(classes=5, epochs=EPOCHS, warmup_epochs=WARMUP, eta=0.1, fdr=0.2, changed=0.3), 40),
    (Setting(classes=10, epochs=EPOCHS, warmup_epochs=WARMUP, score="reciprocal_rank"), 60),
    (Setting(classes=10, epochs=EPOCHS, warmup_epochs=WARMUP, detector="imitation"), 30),
    (Setting(classes=6, epochs=EPOCHS, warmup_epochs=WARMUP, fdr=1.0), 20),
]


@pytest.mark.parametrize(("setting", "images"), CASES)
def test_the_claimed_drop_is_flagged_as_often_as_claimed(setting: Setting, images: int) -> None:
    drop = smallest_drop(setting, images)
    assert drop is not None and 0.05 < drop < 1.0
    claimed = flag_rate(setting, images, drop)
    assert PROBABILITY <= claimed < PROBABILITY + 0.1
    found = frequency(setting, images, drop)
    # Two-sided at 0.1 %; the claim itself is known up to 1.3 points.
    assert binomtest(found, RUNS, claimed).pvalue > 1e-3, (drop, claimed, found / RUNS)


def test_a_smaller_drop_is_flagged_less_often_and_none_hardly_ever() -> None:
    setting, images = CASES[0]
    drop = smallest_drop(setting, images)
    assert drop is not None
    for less in (0.75 * drop, 0.0):
        claimed, found = flag_rate(setting, images, less), frequency(setting, images, less)
        assert claimed < 0.5 and binomtest(found, RUNS, claimed).pvalue > 1e-3, (less, claimed, found)
    assert flag_rate(setting, images, 0.0) < 0.01


def test_answers_that_change_from_epoch_to_epoch_are_flagged_at_least_as_often() -> None:
    setting, images = CASES[0]
    drop = smallest_drop(setting, images)
    assert drop is not None and frequency(setting, images, drop, flicker=True) >= PROBABILITY * RUNS


def test_five_classes_of_eight_images_can_never_be_flagged() -> None:
    setting = Setting(classes=5, epochs=100)
    assert smallest_drop(setting, 8) is None
    needed = images_needed(setting, 1.0, 100)
    assert needed is not None and smallest_drop(setting, needed) is not None
    assert flag_rate(setting, needed - 1, 1.0) < PROBABILITY
    assert images_needed(setting, 1.0, needed - 1) is None


def test_nothing_is_flagged_within_the_warm_up_or_by_less_than_eta() -> None:
    assert flag_rate(Setting(classes=10, epochs=10, warmup_epochs=10), 100, 1.0) == 0.0
    assert images_needed(Setting(classes=10, epochs=100), 0.05, 2000) is None
    assert images_needed(Setting(classes=10, epochs=100), 0.20, 2000) is not None


def test_more_images_and_looser_rules_find_smaller_drops() -> None:
    def found(images: int, **other: float) -> float:
        drop = smallest_drop(Setting(classes=20, epochs=100, **other), images)  # type: ignore[arg-type]
        return 2.0 if drop is None else drop

    assert found(400) < found(100) < found(50) < found(25)
    assert found(50, fdr=0.5) < found(50, fdr=0.05) < found(50, fdr=0.001)
    assert found(100, eta=0.01) < found(100, eta=0.3)
    assert found(100, changed=0.05) < found(100, changed=0.5)


def test_unknown_detectors_are_refused() -> None:
    with pytest.raises(ConfigError, match="`detector` to be one of reference, imitation, but got 'teaching_curve'"):
        Setting(classes=10, epochs=10, detector="teaching_curve")


def test_multiplicity_stands_for_equal_samples() -> None:
    values, labels = torch.tensor([1.0, -1.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1])
    counts = torch.tensor([3, 1, 4, 2])
    margin = torch.tensor([0.05, 0.2], dtype=torch.float64)
    whole = betting_e_value(values.repeat_interleave(counts), labels.repeat_interleave(counts), margin)
    torch.testing.assert_close(betting_e_value(values, labels, margin, counts), whole, rtol=1e-12, atol=0.0)
