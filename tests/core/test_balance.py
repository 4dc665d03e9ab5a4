"""The weight of rows without a teacher, in units of what the inner losses weigh."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distiller_cases import NUM_CLASSES, batch, build
from tllm_plugin import TLLMWrapper
from tllm_plugin.core.balance import EVERY, Balance, smoothed_targets

FLAGGED = (1, 4)


class Scaled(nn.Module):
    """Cross-entropy times a factor, of a linear student; or, without labels, a loss of its features alone."""

    def __init__(self, factor: float, *, label_smoothing: float = 0.0, sees_logits: bool = True) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student = nn.Linear(5, NUM_CLASSES)
        self.teacher = nn.Linear(5, NUM_CLASSES).requires_grad_(False)
        self.factor, self.label_smoothing, self.sees_logits = factor, label_smoothing, sees_logits

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        return list(self.student.parameters())

    def forward(self, image: Tensor, target: Tensor) -> Any:
        logits = self.student(image)
        self.teacher(image)
        if not self.sees_logits:
            return logits, {"loss_kd": self.student.weight.square().sum()}
        half = self.factor / 2 * F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        return logits, {"loss_ce": half, "loss_kd": half.reshape(1)}


def wrap(distiller: nn.Module, flagged: tuple[int, ...] = FLAGGED, **options: Any) -> TLLMWrapper:
    wrapper = TLLMWrapper(distiller, NUM_CLASSES, **{"balance": True, "min_rows": 2, **options}).train()
    flags = torch.zeros(NUM_CLASSES, dtype=torch.bool)
    flags[list(flagged)] = True
    wrapper.set_undistillable(flags)
    return wrapper


def linear_batch(rows: int = 12, classes: tuple[int, ...] = tuple(range(NUM_CLASSES))) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    target = torch.tensor([classes[i % len(classes)] for i in range(rows)])
    return {"image": torch.randn(rows, 5, generator=generator), "target": target}


def total(losses: dict[str, Tensor]) -> Tensor:
    return torch.stack([loss.mean() for loss in losses.values()]).sum()


@pytest.mark.parametrize("factor", [0.1, 1.0, 7.0])
def test_losses_that_are_a_multiple_of_the_cross_entropy_weigh_that_multiple(factor: float) -> None:
    wrapper = wrap(Scaled(factor, label_smoothing=0.1), label_smoothing=0.1)
    given = linear_batch()
    _, losses = wrapper(**given)
    assert wrapper.balance is not None and wrapper.balance.latest.item() == pytest.approx(factor, rel=1e-5)
    # So the whole batch is the multiple of the cross-entropy.
    expected = factor * F.cross_entropy(wrapper.student(given["image"]), given["target"], label_smoothing=0.1)
    torch.testing.assert_close(total(losses), expected)


def test_the_weight_is_the_ratio_of_gradient_lengths_row_by_row() -> None:
    wrapper = wrap(build("KD"), label_smoothing=0.1, ce_weight=0.5)
    keywords = batch("KD")
    logits, losses = wrapper(**keywords)
    (gradient,) = torch.autograd.grad(total(losses), logits, retain_graph=True)
    target = keywords["target"].tolist()
    taught = untaught = 0.0
    for row, label in enumerate(target):
        if label in FLAGGED:
            continue
        leaf = logits[row].detach().clone().requires_grad_()
        F.cross_entropy(leaf[None], torch.tensor([label]), label_smoothing=0.1).backward()
        assert leaf.grad is not None
        untaught += leaf.grad.norm().item()
        taught += gradient[row].norm().item() * len(target)
    assert taught != pytest.approx(untaught, rel=0.2)
    for row, label in enumerate(target):
        if label in FLAGGED:
            leaf = logits[row].detach().clone().requires_grad_()
            F.cross_entropy(leaf[None], torch.tensor([label]), label_smoothing=0.1).backward()
            assert leaf.grad is not None
            expected = 0.5 * taught / untaught * leaf.grad / len(target)
            torch.testing.assert_close(gradient[row], expected, rtol=1e-4, atol=1e-7)


def test_measuring_leaves_the_inner_losses_and_their_gradients_alone() -> None:
    results = []
    for balance in (False, True):
        wrapper = wrap(build("KD"), balance=balance, ce_weight=0.0)
        _, losses = wrapper(**batch("KD"))
        for loss in losses.values():  # DOT calls `backward` on every loss by itself.
            loss.backward(retain_graph=True)
        results.append([parameter.grad for parameter in wrapper.get_learnable_parameters()])
    assert results[0]
    for plain, balanced in zip(*results, strict=True):
        assert plain is not None and balanced is not None and torch.equal(plain, balanced)


def test_losses_that_do_not_depend_on_the_logits_leave_the_weight_at_one() -> None:
    wrapper = wrap(Scaled(3.0, sees_logits=False))
    wrapper(**linear_batch())
    assert wrapper.balance is not None and wrapper.balance.latest.item() == 1.0


def test_everything_flagged_is_not_balanced_and_a_batch_without_distillable_rows_has_the_latest_weight() -> None:
    wrapper = wrap(Scaled(5.0))
    wrapper(**linear_batch())
    given = linear_batch(6, FLAGGED)
    plain = F.cross_entropy(wrapper.student(given["image"]), given["target"], label_smoothing=0.1)
    torch.testing.assert_close(total(wrapper(**given)[1]) / plain, wrapper.balance.latest)  # type: ignore[union-attr]
    wrapper.set_undistillable(torch.ones(NUM_CLASSES, dtype=torch.bool))
    torch.testing.assert_close(total(wrapper(**given)[1]), plain)


def test_it_is_measured_every_few_steps_and_goes_on_after_a_resume() -> None:
    wrapper, other = (wrap(Scaled(5.0, label_smoothing=0.1)) for _ in range(2))
    balance = wrapper.balance
    assert balance is not None and other.balance is not None
    weights = []
    for step in range(2 * EVERY):
        if step == 2:
            other.load_state_dict(wrapper.state_dict())
        for each in (wrapper, other)[: 1 if step < 2 else 2]:
            each.distiller.factor = float(step + 1)
            each(**linear_batch())
        weights.append(balance.latest.item())
    assert weights == pytest.approx([1.0] * EVERY + [EVERY + 1.0] * EVERY, rel=1e-4)
    assert other.balance.latest.item() == weights[-1] and other.balance.steps == balance.steps == 2 * EVERY


def test_the_latest_weight_travels_in_the_checkpoint() -> None:
    wrapper = wrap(Scaled(5.0))
    wrapper(**linear_batch())
    file = io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    other = wrap(Scaled(5.0))
    other.load_state_dict(torch.load(file, weights_only=True))
    given = linear_batch(6, FLAGGED)
    assert torch.equal(total(other(**given)[1]), total(wrapper(**given)[1]))
    # One that was saved without balance leaves the weight as it is.
    other.load_state_dict(wrap(Scaled(5.0), balance=False).state_dict())


def test_processes_that_add_up_have_the_weight_of_the_whole_batch() -> None:
    whole = linear_batch()
    lengths: list[Tensor] = []

    def collect(value: Tensor) -> Tensor:
        lengths.append(value.clone())
        return value

    def wrapped() -> TLLMWrapper:
        distiller = build_uneven()
        return wrap(distiller)

    one = wrapped()
    one(**whole)
    # Halves with different numbers of distillable rows, one with all, one with none.
    order = torch.argsort(torch.isin(whole["target"], torch.tensor(FLAGGED)).int(), stable=True)
    for part in (order[:5], order[5:8], order[8:]):
        process = wrapped()
        assert process.balance is not None
        process.balance.add_up = collect
        process(**{name: value[part] for name, value in whole.items()})
    together = torch.stack(lengths).sum(0)
    assert len(lengths) == 3 and not lengths[-1].any()
    torch.testing.assert_close(together[0] / together[1], one.balance.latest)  # type: ignore[union-attr]


def build_uneven() -> nn.Module:
    """Return a distiller whose losses are means of what differs from row to row."""

    class Uneven(Scaled):
        def forward(self, image: Tensor, target: Tensor) -> Any:
            logits = self.student(image)
            return logits, {"loss_kd": (logits - self.teacher(image)).pow(2).sum(1).mean()}

    return Uneven(1.0)


def test_a_student_without_errors_gives_a_finite_weight() -> None:
    logits = torch.eye(3).mul(1000).requires_grad_()
    balance = Balance(0.0)
    weight = balance.update({"loss": (logits * 2).mean()}, logits, torch.arange(3), torch.arange(3))
    assert torch.isfinite(weight)


def test_smoothed_targets_are_those_of_the_cross_entropy() -> None:
    logits = torch.randn(4, NUM_CLASSES, generator=torch.Generator().manual_seed(0))
    target = torch.tensor([0, 5, 2, 2])
    expected = F.cross_entropy(logits, target, label_smoothing=0.3)
    torch.testing.assert_close(F.cross_entropy(logits, smoothed_targets(target, NUM_CLASSES, 0.3)), expected)
