"""Distillers that return one value per row, which the trainer averages."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distiller_cases import NUM_CLASSES, batch, networks
from tllm_plugin import TLLMWrapper
from tllm_plugin.core.outputs import logits_of

KEYWORDS = {name: value for name, value in batch("KD").items() if name in ("image", "target")}
FLAGGED = torch.tensor([False, True, False, False, True, False])
ALL = torch.ones(NUM_CLASSES, dtype=torch.bool)


class PerRow(nn.Module):
    """Cross-entropy and squared distance of the logits, each row by itself, in the shapes that `reduce` makes."""

    def __init__(self, student: nn.Module, teacher: nn.Module, reduce: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.student, self.teacher, self.reduce = student, teacher, reduce

    def forward(self, image: Tensor, target: Tensor) -> Any:
        logits = logits_of(self.student(image))
        with torch.no_grad():
            taught = logits_of(self.teacher(image))
        ce = F.cross_entropy(logits, target, reduction="none")
        return logits, self.reduce(ce, (logits - taught).pow(2).mean(1))


SHAPES: dict[str, Callable[..., dict[str, Tensor]]] = {
    "both": lambda ce, kd: {"loss_ce": ce, "loss_kd": kd},
    "columns": lambda ce, kd: {"loss_ce": ce[:, None], "loss_kd": kd[:, None]},
    "mean of the first": lambda ce, kd: {"loss_task": ce.mean(), "loss_kd": kd[:, None]},
    "mean of the second": lambda ce, kd: {"loss_ce": ce, "loss_kd": kd.mean()},
}
WITHOUT_ROWS: dict[str, Callable[..., dict[str, Tensor]]] = {
    "mean": lambda ce, kd: {"loss_ce": ce.mean(), "loss_kd": kd.mean()}
}


def wrapped(reduce: Callable[..., dict[str, Tensor]], flags: Tensor, **options: Any) -> TLLMWrapper:
    """Return a wrapper whose BatchNorm does not couple rows."""
    wrapper = TLLMWrapper(PerRow(*networks(), reduce), NUM_CLASSES, **options).train()
    for part in wrapper.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
    wrapper(**KEYWORDS)
    wrapper.set_undistillable(flags)
    return wrapper


def gradients(wrapper: TLLMWrapper, losses: dict[str, Tensor]) -> list[Tensor]:
    total: Any = sum(loss.mean() for loss in losses.values())
    total.backward()
    return [parameter.grad.clone() for parameter in wrapper.student.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("balance", [False, True])
@pytest.mark.parametrize("shapes", SHAPES)
def test_averaged_by_the_trainer_it_is_the_distiller_that_averages(shapes: str, balance: bool) -> None:
    results = []
    for reduce in (SHAPES[shapes], WITHOUT_ROWS["mean"]):
        wrapper = wrapped(reduce, FLAGGED, balance=balance)
        logits, losses = wrapper(**KEYWORDS)
        results.append((logits, gradients(wrapper, losses)))
    assert torch.equal(results[0][0], results[1][0])
    for mine, reference in zip(results[0][1], results[1][1], strict=True):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("shapes", SHAPES)
def test_shapes_are_the_distillers_whatever_is_flagged(shapes: str) -> None:
    wrapper = wrapped(SHAPES[shapes], torch.zeros(NUM_CLASSES, dtype=torch.bool))
    expected = {name: loss.shape for name, loss in wrapper(**KEYWORDS)[1].items()}
    for flags in (FLAGGED, ALL):
        wrapper.set_undistillable(flags)
        assert {name: loss.shape for name, loss in wrapper(**KEYWORDS)[1].items()} == expected
        fewer = {name: value[:7] for name, value in KEYWORDS.items()}
        assert all(loss.shape in ((), (7,), (7, 1)) for loss in wrapper(**fewer)[1].values())


def test_each_row_has_its_own_value() -> None:
    wrapper = wrapped(SHAPES["both"], FLAGGED, label_smoothing=0.1, ce_weight=2.0)
    inner = copy.deepcopy(wrapper.distiller)
    logits, losses = wrapper(**KEYWORDS)
    _, plain = inner(**KEYWORDS)
    flagged = FLAGGED[KEYWORDS["target"]]
    smoothed = 2 * F.cross_entropy(logits, KEYWORDS["target"], label_smoothing=0.1, reduction="none")
    torch.testing.assert_close(losses["loss_ce"], torch.where(flagged, smoothed, plain["loss_ce"]))
    torch.testing.assert_close(losses["loss_kd"], plain["loss_kd"].masked_fill(flagged, 0.0))


def test_a_row_alone_and_a_resume_keep_the_shape() -> None:
    wrapper = wrapped(SHAPES["columns"], FLAGGED, min_rows=1)
    one = {name: value[:2] for name, value in KEYWORDS.items()}
    assert FLAGGED[one["target"]].tolist() == [False, True]  # One row has a teacher.
    assert all(loss.shape == (2, 1) for loss in wrapper(**one)[1].values())
    file = io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    resumed = TLLMWrapper(PerRow(*networks(), SHAPES["columns"]), NUM_CLASSES).train()
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.set_undistillable(ALL)
    assert all(loss.shape == (12, 1) for loss in resumed(**KEYWORDS)[1].values())
