"""Policies: weights from strengths, their controls, and what of them travels in a checkpoint."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.mixing import mixed_logits
from tllm_plugin.core.policies import LEAST_WEIGHT, POLICIES, Decision, PolicyOptions, strength_level

STRENGTHS = torch.tensor([0.05, 0.2, 0.1, 0.4, 0.25], dtype=torch.float64)


def weights(policy: str, strengths: Tensor = STRENGTHS, level: str = "mean", seed: int = 0) -> Tensor:
    return POLICIES[policy](strengths, PolicyOptions(level, seed))


@pytest.mark.parametrize(("level", "expected"), [("mean", 0.2), ("max", 0.4), ("0.3", 0.3)])
def test_equal_strength_raises_weaker_classes_to_the_level_and_leaves_the_others(level: str, expected: float) -> None:
    found = weights("equal_strength", level=level)
    raised = found * STRENGTHS + 1 - found
    torch.testing.assert_close(raised, STRENGTHS.clamp(min=expected))
    assert torch.equal(
        found[expected <= STRENGTHS], torch.ones(int((expected <= STRENGTHS).sum()), dtype=torch.float64)
    )


def test_mixed_targets_of_the_weights_have_the_same_mean_own_class_probability() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(200) % 5
    own = 4 * torch.rand(5, generator=generator)
    logits = torch.randn(200, 5, generator=generator) + torch.diag(own)[target]

    def strengths(values: Tensor) -> Tensor:
        own = (values / 4).softmax(1).gather(1, target[:, None]).squeeze(1)
        return torch.stack([own[target == index].mean() for index in range(5)])

    found = weights("equal_strength", strengths(logits), "max")
    raised = strengths(mixed_logits(logits, target, found[target], temperature=4.0))
    torch.testing.assert_close(raised, strengths(logits).max().expand(5))


def test_controls_give_as_much_label() -> None:
    mean = weights("equal_strength").mean()
    assert torch.equal(weights("constant"), mean.expand(5))
    shuffled = [weights("permuted", seed=seed) for seed in range(4)]
    for found in shuffled:
        assert torch.equal(found.sort().values, weights("equal_strength").sort().values)
    assert torch.equal(shuffled[0], weights("permuted", seed=0))
    assert len({tuple(found.tolist()) for found in shuffled}) > 1


def test_no_class_loses_the_teacher() -> None:
    sure = torch.tensor([0.0, 1.0, 0.5])
    found = weights("equal_strength", sure, "max")
    assert found.tolist() == [pytest.approx(LEAST_WEIGHT), 1.0, pytest.approx(LEAST_WEIGHT)]
    assert torch.equal(weights("equal_strength", torch.ones(3)), torch.ones(3))


@pytest.mark.parametrize("level", ["", "median", "0", "1", "nan", "inf", "-0.1"])
def test_a_level_that_is_none_is_refused(level: str) -> None:
    for make in (
        lambda: strength_level(STRENGTHS, level),
        lambda: Decision("equal_strength", 5, PolicyOptions(level)),
    ):
        with pytest.raises(ConfigError, match="Expected `level` to be mean, max or a number in"):
            make()
    with pytest.raises(ConfigError, match="Expected `policy` to be one of constant, equal_strength, permuted, but got"):
        Decision("equal", 5, PolicyOptions())


def test_a_decision_travels_in_a_checkpoint() -> None:
    decision, other = (Decision("equal_strength", 5, PolicyOptions()) for _ in range(2))
    assert not decision.is_made and torch.equal(decision.weights, torch.ones(5))
    other.load_state_dict(decision.state_dict())
    assert not other.is_made
    decision.make(STRENGTHS, 4.0)
    other.load_state_dict(decision.state_dict())
    assert other.is_made and other.temperature == 4.0 and other.level == pytest.approx(0.2)
    assert torch.equal(other.weights, weights("equal_strength").float()) and other.weights.dtype == torch.float32
    assert torch.equal(other.strengths, STRENGTHS)
