"""A planted teacher is wrong exactly where it was told to be, and otherwise itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.models.planting import PlantedTeacher, wrong_classes

NUM_CLASSES = 6
LOGITS = torch.randn(200, NUM_CLASSES, generator=torch.Generator().manual_seed(0)) * 3


class Oracle(nn.Module):
    """Calls its input logits, and hands out one feature object."""

    def __init__(self) -> None:
        super().__init__()
        self.features: dict[str, Any] = {"feats": [torch.ones(1)]}

    def forward(self, image: Tensor) -> tuple[Tensor, Any]:
        return image, self.features


def test_wrong_exactly_on_planted_predictions() -> None:
    logits, _ = PlantedTeacher(Oracle(), [1, 2], NUM_CLASSES)(LOGITS)
    before, after = LOGITS.argmax(1).tolist(), logits.argmax(1).tolist()
    assert {1, 2} < set(before)
    assert after == [{1: 3, 2: 3}.get(label, label) for label in before]


def test_full_strength_exchanges_two_logits_and_keeps_the_rest() -> None:
    logits, _ = PlantedTeacher(Oracle(), [1], NUM_CLASSES)(LOGITS)
    for was, now in zip(LOGITS.tolist(), logits.tolist(), strict=True):
        if max(was) == was[1]:
            was[1], was[2] = was[2], was[1]
        assert now == was


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9])
def test_strength_mixes_probabilities(strength: float) -> None:
    logits, _ = PlantedTeacher(Oracle(), [4], NUM_CLASSES, strength)(LOGITS)
    for was, now in zip(LOGITS.softmax(1).tolist(), logits.softmax(1).tolist(), strict=True):
        expected = list(was)
        if max(was) == was[4]:
            expected[4] = (1 - strength) * was[4] + strength * was[5]
            expected[5] = (1 - strength) * was[5] + strength * was[4]
        assert now == pytest.approx(expected, abs=2e-6)


def test_strength_keeps_logits_finite() -> None:
    sure = torch.tensor([[1e4, 0.0, 0.0], [0.0, -1e4, 1e4]])
    logits, _ = PlantedTeacher(Oracle(), [0], 3, strength=0.5)(sure)
    assert torch.isfinite(logits).all()


def test_features_and_state_are_the_teachers() -> None:
    oracle = Oracle()
    planted = PlantedTeacher(oracle, [0], NUM_CLASSES)
    assert planted(LOGITS)[1] is oracle.features
    assert planted.state_dict() == {}


@pytest.mark.parametrize(
    ("classes", "expected"),
    [([], [0, 1, 2, 3]), ([3], [0, 1, 2, 0]), ([2, 3], [0, 1, 0, 0]), ([0, 1, 2, 3], [1, 2, 3, 0])],
)
def test_wrong_classes(classes: list[int], expected: list[int]) -> None:
    assert wrong_classes(classes, 4).tolist() == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([2, 6, -1], 6), r"`DISTILLER.PLANT.CLASSES` to be in \[0, 6\), but got \[-1, 6\]"),
        (([2], 6, 0.0), r"`DISTILLER.PLANT.STRENGTH` to be in \(0, 1\], but got 0.0"),
        (([2], 6, 1.5), r"`DISTILLER.PLANT.STRENGTH` to be in \(0, 1\], but got 1.5"),
        (([0], 1), "at least 2 classes to plant a wrong answer, but got 1"),
    ],
)
def test_errors(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        PlantedTeacher(Oracle(), *arguments)
