"""Detectors on simulated hold-outs whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tllm_plugin import DETECTORS, ConfigError, Curves, Detector, Evidence, Predictions, create_detector, options_for
from tllm_plugin.core.detectors.sequential import SequentialDetector
from tllm_plugin.core.evidence import robust_deviation

CLASSES, PER_CLASS, EPOCHS = 20, 20, 30
LABELS = torch.arange(CLASSES).repeat_interleave(PER_CLASS)


def outcome(accuracy: Tensor, generator: torch.Generator, difficulty: Tensor) -> Predictions:
    """Samples that are right with their class's probability; half of the luck is the sample's, half the epoch's."""
    luck = 0.5 * difficulty + 0.5 * torch.rand(LABELS.numel(), generator=generator)
    # The sum of two halves is triangular; its distribution function turns it into a uniform number again.
    uniform = torch.where(luck < 0.5, 2 * luck**2, 1 - 2 * (1 - luck) ** 2)
    right = uniform < accuracy[LABELS]
    prediction = torch.where(right, LABELS, (LABELS + 1) % CLASSES)
    rank = torch.where(right, 1, 2).to(torch.uint8)
    return Predictions(LABELS, prediction, CLASSES, rank, right.float() * 0.6 + 0.2, right)


def simulate(
    seed: int,
    hurt: list[int],
    size: float = 0.5,
    epochs: int = EPOCHS,
    forced: Sequence[int] = (),
    name: str = "reference",
    **options: Any,
) -> tuple[Detector, list[Tensor]]:
    """Run the `reference` detector on two simulated runs that differ only in the hurt classes."""
    generator = torch.Generator().manual_seed(seed)
    difficulty = torch.rand(LABELS.numel(), generator=generator)
    reference = Curves(LABELS, CLASSES, torch.arange(LABELS.numel()))
    base = 0.7 + 0.25 * torch.rand(CLASSES, generator=generator)
    learned = torch.linspace(0.3, 1.0, epochs)
    runs: list[Predictions] = []
    for epoch in range(1, epochs + 1):
        accuracy = base * learned[epoch - 1]
        reference.append(epoch, outcome(accuracy, generator, difficulty))
        worse = accuracy.clone()
        worse[hurt] -= size
        runs.append(outcome(worse.clamp(min=0), generator, difficulty))
    options = {"score": "accuracy", **options}
    detector = create_detector(name, CLASSES, total_epochs=epochs, reference=reference, **options)
    detector._flag(torch.isin(torch.arange(CLASSES), torch.tensor(list(forced), dtype=torch.int64)), epoch=0)
    return detector, [detector.update(epoch, samples) for epoch, samples in enumerate(runs, start=1)]


def test_reference_finds_what_is_hurt_and_nothing_else() -> None:
    found = []
    for seed in range(10):
        detector, history = simulate(seed, hurt=[3, 8], size=0.9, warmup_epochs=3)
        assert not (detector.flags.clone().index_fill_(0, torch.tensor([3, 8]), False)).any()
        found.append(int(detector.flags.sum()))
        for earlier, later in zip(history, history[1:], strict=False):
            assert not (earlier & ~later).any(), "a flag was taken back"
    assert sum(found) >= 18


@pytest.mark.parametrize("fdr", [0.5, 0.05])
def test_looking_every_epoch_keeps_the_false_discovery_rate(fdr: float) -> None:
    """Two runs of one truth, looked at after each of 30 epochs: a flag is a false discovery."""
    runs = 40
    wrong = sum(bool(simulate(100 + seed, [], fdr=fdr, warmup_epochs=0)[0].flags.any()) for seed in range(runs))
    # With nothing to find, the false discovery rate is the share of runs that flag anything. Slack: 3 standard errors.
    assert wrong / runs <= fdr + 3 * (fdr * (1 - fdr) / runs) ** 0.5


def test_without_evidence_looking_every_epoch_flags_by_chance() -> None:
    """The naive rule, which the evidence replaces, does flag classes that are not hurt."""
    flagged = [int(simulate(seed, [], fdr=1.0, warmup_epochs=0, eta=0.05)[0].flags.sum()) for seed in range(5)]
    assert sum(flagged) / (5 * CLASSES) > 0.2


def test_false_discovery_rate_with_some_classes_hurt() -> None:
    shares = []
    for seed in range(20):
        detector, _ = simulate(200 + seed, hurt=[0, 1, 2, 3], size=0.6, fdr=0.1, warmup_epochs=0)
        flagged = detector.flags.nonzero().squeeze(1).tolist()
        shares.append(len([c for c in flagged if c > 3]) / max(len(flagged), 1))
    assert sum(shares) / len(shares) <= 0.1


def test_what_all_classes_share_is_no_evidence() -> None:
    detector, _ = simulate(1, hurt=list(range(CLASSES)), size=0.3, warmup_epochs=0)
    assert not detector.flags.any()
    assert abs(float(detector.evidence.drop.median())) < 0.06


def test_evidence_is_kept_from_the_epoch_of_the_flag() -> None:
    detector, history = simulate(0, hurt=[3], size=0.9, warmup_epochs=3)
    epoch = int(detector.epoch_flagged[3])
    assert history[epoch - 1][3] and not history[epoch - 2][3]
    assert detector.evidence.drop[3] > 0.05
    assert detector.evidence.e_value[3] >= CLASSES / 0.05
    assert detector.evidence.p_value[3] < 0.01
    assert detector.holdout_count.tolist() == [PER_CLASS] * CLASSES
    assert detector.holdout_correct[3] <= 5
    assert detector.epoch_flagged[4] == -1


def test_probability_of_harm_is_recorded_beside_the_e_value() -> None:
    detector, _ = simulate(0, hurt=[3], size=0.4, fdr=1e-6)
    harm = detector.evidence.harm
    assert harm[3] > 0.99 and ((harm >= 0) & (harm <= 1)).all() and harm.median() < 0.9
    state = detector.state_dict()
    del state["harm"]  # A checkpoint of an earlier version.
    detector.load_state_dict(state)
    assert detector.evidence.harm.isnan().all() and not detector.evidence.drop.isnan().any()


def test_posterior_flags_probable_harm() -> None:
    false = 0
    for seed in range(10):
        detector, _ = simulate(seed, hurt=[3, 8], size=0.4, warmup_epochs=3, name="posterior")
        assert detector.flags[[3, 8]].all() and (detector.epoch_flagged[[3, 8]] > 3).all()
        false += int(detector.flags.sum()) - 2
        certain, _ = simulate(seed, hurt=[3, 8], size=0.4, warmup_epochs=3, name="posterior", probability=0.999)
        assert not (certain.flags & ~detector.flags).any()
        nothing, _ = simulate(seed, hurt=[], warmup_epochs=3, name="posterior", eta=0.5)
        assert not nothing.flags.any() and "with probability 0.95" in nothing.reason()
    assert false <= 0.25 * 10 * (CLASSES - 2)


def test_warmup_epochs_are_not_judged() -> None:
    detector, history = simulate(0, hurt=[3], size=0.9, warmup_epochs=12)
    assert not torch.stack(history[:12]).any()
    assert detector.epoch_flagged[3] > 12


def test_resume_in_the_middle_changes_nothing() -> None:
    whole, history = simulate(5, hurt=[2, 7], size=0.8, warmup_epochs=2)
    first, _ = simulate(5, hurt=[2, 7], size=0.8, warmup_epochs=2)
    # Play the same run again in two halves, with the state handed over in between.
    reference: Curves = first.reference  # type: ignore[attr-defined]
    generator = torch.Generator().manual_seed(77)
    samples = [outcome(torch.full((CLASSES,), 0.4), generator, torch.rand(LABELS.numel())) for _ in range(EPOCHS)]
    options: dict[str, Any] = {"total_epochs": EPOCHS, "reference": reference, "warmup_epochs": 2, "fdr": 0.5}
    alone, before, after = (create_detector("reference", CLASSES, **options) for _ in range(3))
    for epoch in range(1, EPOCHS + 1):
        alone.update(epoch, samples[epoch - 1])
    for epoch in range(1, 14):
        before.update(epoch, samples[epoch - 1])
    after.load_state_dict(before.state_dict())
    for epoch in range(14, EPOCHS + 1):
        after.update(epoch, samples[epoch - 1])
    left, right = alone.state_dict(), after.state_dict()
    for key in left:
        pairs = [(left[key], right[key])] if key != "memory" else [(left[key][k], right[key][k]) for k in left[key]]
        assert all(torch.equal(a.nan_to_num(-1.0), b.nan_to_num(-1.0)) for a, b in pairs), key


def test_teaching_curve_finds_a_class_that_collapses() -> None:
    generator = torch.Generator().manual_seed(0)
    difficulty = torch.rand(LABELS.numel(), generator=generator)
    options: dict[str, Any] = {"score": "accuracy", "warmup_epochs": 2, "fdr": 0.2}
    detector = create_detector("teaching_curve", CLASSES, total_epochs=40, **options)
    for epoch in range(1, 41):
        accuracy = torch.full((CLASSES,), min(0.95, 0.2 + epoch * 0.05))
        if epoch > 18:
            accuracy[6] = 0.0
        detector.update(epoch, outcome(accuracy, generator, difficulty))
    assert detector.flags.nonzero().squeeze(1).tolist() == [6]
    assert detector.epoch_flagged[6] > 18


def test_teaching_curve_flags_nothing_where_nothing_falls() -> None:
    for seed in range(10):
        generator = torch.Generator().manual_seed(seed)
        difficulty = torch.rand(LABELS.numel(), generator=generator)
        detector = create_detector("teaching_curve", CLASSES, total_epochs=40, warmup_epochs=0)
        for epoch in range(1, 41):
            accuracy = torch.full((CLASSES,), min(0.7, 0.2 + epoch * 0.03))
            detector.update(epoch, outcome(accuracy, generator, difficulty))
        assert not detector.flags.any()


def imitate(seed: int, hard: list[int], copied: list[int], **options: Any) -> Detector:
    """Run `imitation` on a student that is half wrong on hard classes and, on copied ones, wrong like its teacher."""
    generator = torch.Generator().manual_seed(seed)
    difficulty = torch.rand(LABELS.numel(), generator=generator)
    detector = create_detector("imitation", CLASSES, total_epochs=EPOCHS, warmup_epochs=2, **options)
    for epoch in range(1, EPOCHS + 1):
        accuracy = torch.full((CLASSES,), min(0.9, 0.3 + epoch * 0.05))
        accuracy[hard] = 0.5
        accuracy[copied] = 0.1
        samples = outcome(accuracy, generator, difficulty)
        by_chance = torch.rand(LABELS.numel(), generator=generator) < 0.2
        copies = torch.isin(LABELS, torch.tensor(copied)) | by_chance
        agree = torch.where(samples.correct, ~torch.isin(LABELS, torch.tensor(copied)), copies)
        detector.update(epoch, replace(samples, agree=agree))
    return detector


def test_imitation_finds_copied_errors_and_not_hard_classes() -> None:
    for seed in range(5):
        detector = imitate(seed, hard=[2, 5, 11], copied=[4, 9])
        assert detector.flags.nonzero().squeeze(1).tolist() == [4, 9]
        assert (detector.evidence.p_value[[4, 9]] < 0.01).all()
        assert (detector.evidence.drop[[4, 9]] > 0.5).all()


def test_imitation_flags_nothing_where_nothing_is_copied() -> None:
    for seed in range(10):
        detector = imitate(seed, hard=[2, 5, 11], copied=[])
        assert not detector.flags.any()
    assert detector.reason().startswith("no class repeated the teacher's errors more often than")


def test_imitation_needs_a_teacher() -> None:
    detector = create_detector("imitation", CLASSES, total_epochs=3)
    with pytest.raises(ConfigError, match="a teacher for the detector `imitation`"):
        detector.update(1, replace(some_samples(), agree=None))


@pytest.mark.parametrize("forced", [1, 10, 18])
def test_forced_flags_do_not_make_other_classes_look_worse(forced: int) -> None:
    """No cascade: what a class is judged by hardly depends on which others are flagged."""
    free, _ = simulate(3, [], warmup_epochs=0, fdr=0.01)
    detector, _ = simulate(3, [], warmup_epochs=0, fdr=0.01, forced=list(range(forced)))
    others = torch.arange(forced, CLASSES)
    assert not detector.flags[others].any() and not free.flags.any()
    worse = detector.evidence.drop[others] - free.evidence.drop[others]
    # All that can move is the median drop of the unflagged classes, which is taken off where it is a loss.
    assert worse.max() <= 0.06
    assert (detector.evidence.e_value[others] < CLASSES).all()


def test_classes_must_stand_out_from_how_runs_differ_anyway() -> None:
    """Two runs whose classes differ by more than the sampling explains, in both directions: nobody is hurt."""
    per_class, classes = 80, 20
    labels = torch.arange(classes).repeat_interleave(per_class)
    flagged = {0.0: 0, SequentialDetector.spreads: 0}
    for spreads in flagged:
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            reference = Curves(labels, classes, torch.arange(labels.numel()))
            runs = []
            for epoch in range(1, 11):
                both = []
                for _ in range(2):
                    accuracy = (0.5 + 0.15 * torch.randn(classes, generator=generator)).clamp(0, 1)[labels]
                    right = torch.rand(labels.numel(), generator=generator) < accuracy
                    rank = torch.where(right, 1, 2).to(torch.uint8)
                    both.append(Predictions(labels, torch.where(right, labels, -1), classes, rank, right.float()))
                reference.append(epoch, both[0])
                runs.append(both[1])
            detector = create_detector("reference", classes, total_epochs=10, reference=reference, warmup_epochs=3)
            detector.spreads = spreads  # type: ignore[attr-defined]
            for epoch, samples in enumerate(runs, start=1):
                detector.update(epoch, samples)
            flagged[spreads] += int(detector.flags.sum())
    assert flagged[0.0] >= 5 and flagged[SequentialDetector.spreads] == 0


def test_sampling_alone_is_no_spread() -> None:
    detector, _ = simulate(0, [])
    values = torch.randn(CLASSES * 50, generator=torch.Generator().manual_seed(0))
    drops = values.reshape(CLASSES, 50).mean(1).double()
    variance = torch.full((CLASSES,), 1 / 50, dtype=torch.float64)
    spread = detector.spread  # type: ignore[attr-defined]
    assert spread(drops, variance) < 0.06 < robust_deviation(drops)
    assert spread(drops + 0.5 * torch.randn(CLASSES, generator=torch.Generator().manual_seed(1)).sign(), variance) > 0.4


def some_samples() -> Predictions:
    return outcome(torch.full((CLASSES,), 0.5), torch.Generator().manual_seed(0), torch.rand(LABELS.numel()))


def test_scheduled_detectors() -> None:
    none = create_detector("none", CLASSES)
    everything = create_detector("all", CLASSES)
    after = create_detector("after", CLASSES, total_epochs=10, after_fraction=0.7)
    fixed = create_detector("fixed", CLASSES, classes=[2, 5])
    assert everything.flags.all() and everything.smooths_labels
    assert fixed.flags.nonzero().squeeze(1).tolist() == [2, 5]
    assert not after.flags.any() and not after.smooths_labels
    for epoch in range(1, 11):
        assert not none.update(epoch, some_samples()).any()
        assert everything.update(epoch, some_samples()).all()
        assert bool(after.update(epoch, some_samples()).all()) == (epoch >= 7)
        assert fixed.update(epoch, some_samples()).sum() == 2
    assert after.epoch_flagged.tolist() == [7] * CLASSES
    assert everything.epoch_flagged.tolist() == [0] * CLASSES
    assert "never flags" in none.reason()


def test_after_zero_never_teaches_and_after_one_always_does() -> None:
    assert create_detector("after", CLASSES, total_epochs=9, after_fraction=0.0).flags.all()
    always = create_detector("after", CLASSES, total_epochs=9, after_fraction=1.0)
    assert [bool(always.update(epoch, some_samples()).any()) for epoch in range(1, 10)] == [False] * 8 + [True]


def test_a_detector_of_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DETECTORS, "_items", dict(DETECTORS._items))  # gone again after the test

    @DETECTORS.register("test_odd_classes")
    class OddClasses(Detector):
        def __init__(self, num_classes: int, *, score: str) -> None:
            super().__init__(num_classes)
            self.score = score

        def judge(self, epoch: int, samples: Predictions) -> tuple[Tensor, Evidence]:
            return torch.arange(self.num_classes) % 2 == 1, Evidence.none(self.num_classes)

    detector = create_detector(
        "test_odd_classes", CLASSES, **options_for("test_odd_classes", {"score": "accuracy", "eta": 0.3})
    )
    assert detector.update(1, some_samples()).sum() == CLASSES // 2


def test_classes_of_fixed_may_be_a_tensor_or_an_array() -> None:
    for classes in ([2, 5], (2, 5), torch.tensor([5, 2]), np.array([2, 5], dtype="u1"), range(2, 6, 3)):
        fixed = create_detector("fixed", CLASSES, classes=classes)
        assert fixed.flags.nonzero().squeeze(1).tolist() == [2, 5]


def test_a_detector_of_the_users_own_that_takes_any_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DETECTORS, "_items", dict(DETECTORS._items))

    @DETECTORS.register("test_any_option")
    class AnyOption(Detector):
        def __init__(self, num_classes: int, *, bound: float, **others: Any) -> None:
            super().__init__(num_classes)
            self.given = {"bound": bound, **others}

        def judge(self, epoch: int, samples: Predictions) -> Any:
            return [1, 2], Evidence.none(self.num_classes)

    options = {"bound": 1.0, "eta": 0.3}
    detector = create_detector("test_any_option", CLASSES, **options_for("test_any_option", options))
    assert detector.given == options  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="`test_any_option` to be given bound$"):
        create_detector("test_any_option", CLASSES, eta=0.3)
    with pytest.raises(ConfigError, match="Expected `judge` to be 20 truth values"):
        detector.update(1, some_samples())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0.0}, r"Expected `eta` to be in \(0, 1\), but got 0.0"),
        ({"eta": 1.5}, r"Expected `eta` to be in \(0, 1\), but got 1.5"),
        ({"fdr": 0.0}, r"Expected `fdr` to be in \(0, 1\], but got 0.0"),
        ({"smoothing": 1.0}, r"Expected `smoothing` to be in \[0, 1\), but got 1.0"),
        ({"warmup_epochs": -1}, r"Expected `warmup_epochs` to be at least 0, but got -1"),
        ({"total_epochs": 0}, r"Expected `total_epochs` to be a whole number of at least 1, but got 0"),
        ({"eta": "0.05"}, r"Expected `eta` to be in \(0, 1\), but got '0.05'"),
        ({"smoothing": True}, r"Expected `smoothing` to be in \[0, 1\), but got True"),
        ({"total_epochs": 5.0}, r"Expected `total_epochs` to be a whole number .* but got 5.0"),
        ({"etta": 0.1}, "options of the detector `teaching_curve` to be among .*eta, fdr, score.*, but got etta$"),
        ({"reference": None, "classes": [1]}, "to be among .* but got reference, classes$"),
        ({"score": "acuracy"}, r"Expected `score` to be one of accuracy, agreement, .*, but got 'acuracy'"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_detector("teaching_curve", CLASSES, **{"total_epochs": 5, **options})


def test_more_bad_options() -> None:
    with pytest.raises(ConfigError, match="Expected `detector` to be one of .*reference.*, but got 'refrence'"):
        create_detector("refrence", CLASSES)
    with pytest.raises(ConfigError, match=r"`classes` to be whole numbers in \[0, 20\), but got 20"):
        create_detector("fixed", CLASSES, classes=[1, 20])
    with pytest.raises(ConfigError, match=r"`after_fraction` to be in \[0, 1\], but got 2"):
        create_detector("after", CLASSES, total_epochs=5, after_fraction=2.0)
    for wrong in ([True] * CLASSES, torch.ones(CLASSES, dtype=torch.bool), ["3"], [1.0], [-1], 3):
        with pytest.raises(ConfigError, match="Expected `classes` to be"):
            create_detector("fixed", CLASSES, classes=wrong)
    with pytest.raises(ConfigError, match="the detector `none` to be among none, but got total_epochs"):
        create_detector("none", CLASSES, total_epochs=10)
    with pytest.raises(ConfigError, match="`reference` to be Curves of a vanilla run, but got str"):
        create_detector("reference", CLASSES, total_epochs=5, reference="output/vanilla")
    with pytest.raises(ConfigError, match="`num_classes` to be a whole number of at least 1, but got 0"):
        create_detector("none", 0)
    with pytest.raises(ConfigError, match="`reference` to be given reference, total_epochs"):
        create_detector("reference", CLASSES)
    short = simulate(0, [], epochs=5, warmup_epochs=0)[0].reference  # type: ignore[attr-defined]
    with pytest.raises(ConfigError, match="recorded all 7 epochs, but epoch 6 is missing"):
        create_detector("reference", CLASSES, total_epochs=7, reference=short)
    with pytest.raises(ConfigError, match="reference run to have 9 classes, but got 20"):
        create_detector("reference", 9, total_epochs=5, reference=short)
    with pytest.raises(ConfigError, match="state for 9 classes, but got 20"):
        create_detector("none", 9).load_state_dict(create_detector("none", CLASSES).state_dict())
