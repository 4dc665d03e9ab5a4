"""Distillers that predict by a module of their own, and those that need batches of one size."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distiller_cases import NUM_CLASSES, batch
from tllm_plugin import ConfigError, TLLMWrapper

KEYWORDS = {name: value for name, value in batch("KD").items() if name in ("image", "target")}
ROWS = len(KEYWORDS["target"])
NONE, ALL = torch.zeros(NUM_CLASSES, dtype=torch.bool), torch.ones(NUM_CLASSES, dtype=torch.bool)
FLAGGED = torch.tensor([False, True, False, False, True, False])
DISTILLABLE = ~FLAGGED[KEYWORDS["target"]]


class Network(nn.Module):
    """Returns features and logits of its own, which nobody predicts by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, width, 3)
        self.fc = nn.Linear(width, NUM_CLASSES)
        self.rows: list[int] = []

    def forward(self, image: Tensor) -> tuple[list[Tensor], Tensor]:
        self.rows.append(len(image))
        features = self.first(image).relu()
        return [features], self.fc(features.mean((2, 3)))


class Projector(nn.Module):
    """Predicts by the teacher's classifier on the student's projected features; wants the teacher's for their size."""

    def __init__(self) -> None:
        super().__init__()
        self.project, self.norm = nn.Conv2d(4, 8, 1), nn.BatchNorm2d(8)
        self.rows: list[int] = []

    def forward(self, feature: Tensor, taught: Tensor, classifier: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
        self.rows.append(len(feature))
        feature = self.norm(self.project(F.adaptive_avg_pool2d(feature, taught.shape[2:])))
        return feature, taught, classifier(feature.mean((2, 3)))


class Projects(nn.Module):
    def __init__(self, *, named: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher, self.projector = Network(4), Network(8), Projector()
        self.teacher.requires_grad_(False)
        if named:
            self.predictor = self.projector

    def forward(self, image: Tensor, target: Tensor) -> Any:
        (feature,), logits = self.student(image)
        (taught,), taught_logits = self.teacher(image)
        mine, theirs, predicted = self.projector(feature, taught, self.teacher.fc)
        own = F.cross_entropy(logits, target)  # With the student's own head, too.
        return predicted, {
            "own": own,
            "kd": (mine - theirs).pow(2).mean(),
            "to": (logits - taught_logits).pow(2).mean(),
        }


def wrap(flags: Tensor, *, called: bool = True, **options: Any) -> TLLMWrapper:
    wrapper = TLLMWrapper(Projects(), NUM_CLASSES, **options).train()
    if called:
        wrapper(**KEYWORDS)
    for network in (wrapper.distiller.student, wrapper.distiller.teacher, wrapper.distiller.projector):
        network.rows.clear()
    wrapper.set_undistillable(flags)
    return wrapper


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack(list(losses.values())).sum()


def test_with_nothing_flagged_it_is_the_distiller() -> None:
    logits, losses = wrap(NONE, called=False)(**KEYWORDS)
    expected_logits, expected = Projects().train()(**KEYWORDS)
    assert torch.equal(logits, expected_logits) and all(torch.equal(losses[name], expected[name]) for name in expected)


def test_flagged_rows_are_trained_by_what_predicts() -> None:
    wrapper = wrap(FLAGGED, called=False)
    logits, losses = wrapper(**KEYWORDS)
    inner = wrapper.distiller
    assert inner.student.rows == inner.projector.rows == [ROWS]
    assert inner.teacher.rows == [int(DISTILLABLE.sum())]
    # By hand: the projector sees every row, the losses those with a teacher.
    reference, image, target = Projects().train(), KEYWORDS["image"], KEYWORDS["target"]
    (feature,), own = reference.student(image)
    (taught,), taught_logits = reference.teacher(image[DISTILLABLE])
    mine, _, predicted = reference.projector(feature, taught, reference.teacher.fc)
    expected = (
        F.cross_entropy(own[DISTILLABLE], target[DISTILLABLE])
        + (mine[DISTILLABLE] - taught).pow(2).mean()
        + (own[DISTILLABLE] - taught_logits).pow(2).mean()
    ) * (DISTILLABLE.sum() / ROWS)
    smoothed = F.cross_entropy(predicted[~DISTILLABLE], target[~DISTILLABLE], label_smoothing=0.1, reduction="sum")
    torch.testing.assert_close(logits, predicted)
    torch.testing.assert_close(total(losses), expected + smoothed / ROWS)
    total(losses).backward()
    (expected + smoothed / ROWS).backward()
    for name, parameter in inner.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(parameter.grad, reference.get_parameter(name).grad)


@pytest.mark.parametrize("called", [True, False])
def test_with_everything_flagged_the_teacher_receives_no_rows(called: bool) -> None:
    wrapper = wrap(ALL, called=called)
    reference = copy.deepcopy(wrapper.distiller)
    logits, losses = wrapper(**KEYWORDS)
    assert wrapper.distiller.teacher.rows == [0] and wrapper.distiller.projector.rows == [ROWS]
    expected = reference.train()(**KEYWORDS)[0]
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(total(losses), F.cross_entropy(expected, KEYWORDS["target"], label_smoothing=0.1))
    total(losses).backward()
    assert wrapper.distiller.projector.project.weight.grad.abs().sum() > 0


def test_a_projector_that_is_not_named_is_refused() -> None:
    with pytest.raises(ConfigError, match="none of the outputs of 1 student calls"):
        TLLMWrapper(Projects(named=False), NUM_CLASSES).train()(**KEYWORDS)


class OneSize(nn.Module):
    """Weighs similarities of rows by a layer as wide as a batch."""

    fixed_rows = True

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher, self.weigh = Network(4), Network(8), nn.Linear(ROWS, 1)
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor, target: Tensor) -> Any:
        (feature,), logits = self.student(image)
        (taught,), _ = self.teacher(image)
        self.seen.append(target)
        pairs = [part.flatten(1) @ part.flatten(1).t() for part in (feature, taught)]
        kd = (self.weigh(pairs[0]) - self.weigh(pairs[1])).pow(2).mean()
        return logits, {"ce": F.cross_entropy(logits, target), "kd": kd}


def test_a_batch_of_one_size_is_filled_with_distillable_rows() -> None:
    wrapper = TLLMWrapper(OneSize(), NUM_CLASSES).train()
    wrapper.set_undistillable(FLAGGED)
    logits, losses = wrapper(**KEYWORDS)
    rows = DISTILLABLE.nonzero().squeeze(1)
    filled = torch.cat([rows, rows])[:ROWS]
    reference = OneSize()
    _, expected = reference(**{name: value[filled] for name, value in KEYWORDS.items()})
    share = len(rows) / ROWS
    torch.testing.assert_close(losses["kd"], expected["kd"] * share)
    smoothed = F.cross_entropy(logits, KEYWORDS["target"], label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(losses["ce"], expected["ce"] * share + smoothed[~DISTILLABLE].sum() / ROWS)
    assert torch.equal(wrapper.distiller.seen[0], KEYWORDS["target"][filled]) and logits.shape == (ROWS, NUM_CLASSES)
    for balanced in (True, False):
        again = TLLMWrapper(OneSize(), NUM_CLASSES, balance=balanced).train()
        again.set_undistillable(FLAGGED)
        assert bool(torch.isfinite(total(again(**KEYWORDS)[1])))
