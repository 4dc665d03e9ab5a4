"""Teaching weights between 0 and 1: targets are mixed, features are matched less, and all else stays as it was."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distiller_cases import (
    BUILDERS,
    EPOCH,
    NUM_CLASSES,
    WITH_TEACHER,
    WITHOUT_TEACHER,
    Calls,
    batch,
    build,
    expected_logits,
    named,
    total,
    trained_parameters,
)
from tests.own_loop_cases import Pieces
from tests.wrapper_checks import (
    BETWEEN,
    WEIGHTED,
    WITH_ZERO,
    bf16_autocast,
    check_equal,
    compiled_networks,
    gradients,
    mixed_by_hand,
    replicas_in_threads_do_not_disturb_each_other,
    wrap,
)
from tllm_plugin import TLLMWrapper
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.mixing import mixed_logits, temperature_of

TEMPERATURE = 2.5


@pytest.mark.parametrize("name", WITH_TEACHER)
@pytest.mark.parametrize("check", WEIGHTED, ids=lambda check: check.__name__)
def test_every_distiller_with_a_teacher(check: Callable[[str], None], name: str) -> None:
    check(name)


@pytest.mark.parametrize("weights", [BETWEEN, WITH_ZERO])
@pytest.mark.parametrize("name", WITH_TEACHER)
def test_replicas_in_threads_do_not_disturb_each_other(name: str, weights: Tensor) -> None:
    replicas_in_threads_do_not_disturb_each_other(name, weights)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_bf16_autocast(name: str) -> None:
    bf16_autocast(name, WITH_ZERO, atol=0.1)


@pytest.mark.parametrize("style", ["module", "in_place"])
def test_compiled_networks(style: str) -> None:
    compiled_networks("AT", style, [BETWEEN, WITH_ZERO, BETWEEN])


def test_gradient_at_the_logits_is_that_of_kd_with_mixed_targets() -> None:
    wrapper, keywords = wrap("KD", BETWEEN), batch("KD")
    target, inner = keywords["target"], build("KD")
    assert inner.temperature == 4.0
    logits, losses = wrapper(**keywords)
    (gradient,) = torch.autograd.grad(total(losses), logits)
    leaf = logits.detach().requires_grad_()
    taught = (inner.teacher.eval()(keywords["image"])[0] / 4).softmax(1)
    share = BETWEEN[target].unsqueeze(1)
    goal = share * taught + (1 - share) * F.one_hot(target, NUM_CLASSES)
    divergence = F.kl_div((leaf / 4).log_softmax(1), goal, reduction="batchmean") * 16
    (expected,) = torch.autograd.grad(0.1 * F.cross_entropy(leaf, target) + 0.9 * divergence, leaf)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("name", sorted(BUILDERS))
def test_ones_are_the_inner_distiller_bit_for_bit(name: str) -> None:
    check_equal(build(name), wrap(name, torch.ones(NUM_CLASSES)), batch(name))


@pytest.mark.parametrize("name", sorted(BUILDERS))
@pytest.mark.parametrize("flagged", [[1, 4], [0, 1, 2, 3], list(range(NUM_CLASSES))])
def test_zeros_are_flags_bit_for_bit(name: str, flagged: list[int]) -> None:
    weights = torch.ones(NUM_CLASSES)
    weights[flagged] = 0.0
    by_weights, by_flags = wrap(name, weights), wrap(name, torch.ones(NUM_CLASSES))
    by_flags.set_undistillable(weights == 0)
    assert torch.equal(by_weights.undistillable, weights == 0)
    check_equal(by_flags, by_weights, batch(name))


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_student_and_teacher_are_called_as_often_as_without_weights(name: str) -> None:
    wrapper, keywords = wrap(name, WITH_ZERO), batch(name)
    student, teacher = Calls(wrapper.student), Calls(wrapper.teacher)  # type: ignore[arg-type]
    logits, losses = wrapper(**keywords)
    total(losses).backward()
    views = sum(key.startswith("image") for key in keywords)
    assert len(student.inputs) == len(teacher.inputs) == views
    assert {image.shape[0] for image in teacher.inputs} == {8}
    assert torch.equal(logits, expected_logits(build(name), keywords))
    for parameter in trained_parameters(wrapper):
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())


@pytest.mark.parametrize("weights", [BETWEEN, WITH_ZERO])
@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_order_of_rows_does_not_matter(name: str, weights: Tensor) -> None:
    wrapper, other = wrap(name, weights), wrap(name, weights)
    keywords = batch(name)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(2))
    permuted = {k: v[order] if isinstance(v, Tensor) and v.shape[0] == 12 else v for k, v in keywords.items()}
    (logits, losses), (other_logits, other_losses) = wrapper(**keywords), other(**permuted)
    torch.testing.assert_close(other_logits, logits[order], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(total(other_losses), total(losses), atol=1e-5, rtol=1e-4)
    total(losses).backward()
    total(other_losses).backward()
    found = gradients(wrapper.distiller)
    for path, gradient in gradients(other.distiller).items():
        if gradient is not None:
            torch.testing.assert_close(gradient, found[path], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_flagged_rows_are_balanced_with_what_the_others_are_taught(name: str) -> None:
    wrapper, plain = (wrap(name, WITH_ZERO, balance=balance) for balance in (True, False))
    (logits, losses), (plain_logits, plain_losses) = (module(**batch(name)) for module in (wrapper, plain))
    assert wrapper.balance is not None and 0 < wrapper.balance.latest.item() < float("inf")
    assert torch.equal(logits, plain_logits)
    losses, plain_losses = named(losses), named(plain_losses)
    added = {"loss_ce", "ce"}
    assert all(torch.equal(losses[key], plain_losses[key]) for key in losses if key not in added)
    unmeasured = wrap(name, BETWEEN, balance=True)
    unmeasured(**batch(name))
    assert unmeasured.balance is not None and unmeasured.balance.steps == 0


def test_weights_travel_through_a_checkpoint_that_loads_without_unpickling() -> None:
    wrapper, file = wrap("KD", WITH_ZERO), io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    other = wrap("KD", torch.ones(NUM_CLASSES))
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.teaching_weights, WITH_ZERO)
    check_equal(wrapper, other, batch("KD"))


def test_a_checkpoint_of_an_earlier_version_has_flags() -> None:
    wrapper = wrap("KD", WITH_ZERO)
    state = wrapper.state_dict()
    del state["teaching_weights"]
    state["undistillable"] = WITH_ZERO == 0
    wrapper.set_teaching_weights(BETWEEN)
    wrapper.load_state_dict(state)
    assert torch.equal(wrapper.teaching_weights, (WITH_ZERO != 0).float())
    by_flags = wrap("KD", torch.ones(NUM_CLASSES))
    by_flags.set_undistillable(WITH_ZERO == 0)
    check_equal(by_flags, wrapper, batch("KD"))


@pytest.mark.parametrize(
    ("bad", "got"),
    [
        (torch.ones(5), r"torch.float32 of shape \(5,\)"),
        (torch.ones(NUM_CLASSES, 1), r"torch.float32 of shape \(6, 1\)"),
        (torch.ones(NUM_CLASSES, dtype=torch.bool), r"torch.bool of shape \(6,\)"),
        (torch.ones(NUM_CLASSES, dtype=torch.int64), r"torch.int64 of shape \(6,\)"),
        ([1.0, 1.0, -0.1, 1.0, 1.0, 1.0], r"-0.1 in place 2"),
        ([1.0, 1.0, 1.0, 1.0, 1.5, 1.0], r"1.5 in place 4"),
        ([1.0, float("nan"), 1.0, 1.0, 1.0, 1.0], r"nan in place 1"),
        (["a"] * NUM_CLASSES, "list"),
        (None, "NoneType"),
    ],
)
def test_wrong_weights_are_named_at_the_call(bad: Any, got: str) -> None:
    wrapper = wrap("KD", BETWEEN)
    with pytest.raises(
        ConfigError, match=rf"Expected `weights` to be 6 numbers in \[0, 1\], one per class, but got {got}"
    ):
        wrapper.set_teaching_weights(bad)
    assert torch.equal(wrapper.teaching_weights, BETWEEN)


@pytest.mark.parametrize("name", WITHOUT_TEACHER)
def test_without_a_teacher_there_is_nothing_to_teach_less(name: str) -> None:
    with pytest.raises(ConfigError, match=r"to be 0 or 1 for a distiller without a teacher, but got 0.3 in place 1"):
        wrap(name, BETWEEN)


def test_the_temperature_is_the_distillers_unless_one_is_given() -> None:
    inner = build("KD")
    assert temperature_of(inner) == 4.0 and temperature_of(build("AT")) == 1.0
    wrapper = TLLMWrapper(inner, NUM_CLASSES).train()
    inner.temperature = 3.0  # As a schedule does.
    assert wrapper.mixing_temperature == 3.0
    for value, expected in (
        (torch.tensor(2.0), 2.0),
        (torch.ones(3), 1.0),
        (True, 1.0),
        (0.0, 1.0),
        (float("nan"), 1.0),
    ):
        inner.temperature = value
        assert wrapper.mixing_temperature == expected
    other: Any = nn.Module()
    other.T = 5
    assert temperature_of(other) == 5.0
    assert wrap("KD", BETWEEN, temperature=TEMPERATURE).mixing_temperature == TEMPERATURE
    for bad in (0, -1.0, float("inf"), "4", True):
        with pytest.raises(ConfigError, match=r"Expected `temperature` to be a number above 0, but got"):
            TLLMWrapper(build("KD"), NUM_CLASSES, temperature=bad)


@pytest.mark.parametrize("weight", [0.999, 0.5, 1e-6])
@pytest.mark.parametrize("scale", [1.0, 100.0, 3e4])
def test_mixed_logits_are_stable(weight: float, scale: float) -> None:
    logits = scale * torch.randn(20, NUM_CLASSES, generator=torch.Generator().manual_seed(1))
    target, weights = torch.arange(20) % NUM_CLASSES, torch.full((20,), weight)
    for dtype, atol in ((torch.float64, 1e-7), (torch.float32, 1e-3)):
        mixed = mixed_logits(logits.to(dtype), target, weights, TEMPERATURE)
        assert mixed.dtype == dtype and bool(torch.isfinite(mixed).all())
        share = weights.double().unsqueeze(1)
        teacher = (logits.to(dtype).double() / TEMPERATURE).softmax(1)
        expected = share * teacher + (1 - share) * F.one_hot(target, NUM_CLASSES)
        torch.testing.assert_close((mixed.double() / TEMPERATURE).softmax(1), expected, atol=atol, rtol=0)
        norms = [(values.double() / TEMPERATURE).logsumexp(1) for values in (mixed, logits)]
        torch.testing.assert_close(*norms, atol=1e-6 * scale + 1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_rows_of_weight_one_are_the_logits_themselves(dtype: torch.dtype) -> None:
    logits = (5 * torch.randn(12, NUM_CLASSES, generator=torch.Generator().manual_seed(1))).to(dtype)
    weights = torch.tensor([1.0, 0.5]).repeat(6)
    mixed = mixed_logits(logits, torch.arange(12) % NUM_CLASSES, weights, TEMPERATURE)
    assert mixed.dtype == dtype
    assert torch.equal(mixed[::2], logits[::2]) and not torch.equal(mixed[1::2], logits[1::2])


class TeacherOf(nn.Module):
    """Returns what a function makes of the logits."""

    def __init__(self, network: nn.Module, output: Any) -> None:
        super().__init__()
        self.network, self.output = network, output

    def forward(self, image: Tensor) -> Any:
        return self.output(self.network(image)[0])


@pytest.mark.parametrize("name", ["own: one tensor", "own: teacher first", "AT", "FITNET"])
def test_networks_may_have_more_outputs_than_there_are_classes(name: str) -> None:
    keywords = batch(name)
    keywords["target"] = keywords["target"] % 4
    fewer, all_of_them = TLLMWrapper(build(name), 4).train(), wrap(name, BETWEEN)
    fewer.set_teaching_weights(BETWEEN[:4])
    for _ in range(2):
        check_equal(fewer, all_of_them, keywords)


def test_features_that_are_as_wide_as_logits_might_be_are_left_alone() -> None:
    class Seen(Pieces):
        def others(self, image: Tensor) -> list[Tensor]:
            self.seen = self.teacher(image)
            return [self.seen[:, :NUM_CLASSES]]

    inner: Any = build("own: one tensor")
    backbone = TeacherOf(inner.teacher, lambda logits: torch.cat([logits, logits], dim=1))
    wrapper = TLLMWrapper(Seen(inner.student, backbone), NUM_CLASSES).train()
    wrapper.set_teaching_weights(BETWEEN)
    wrapper(**batch("KD"))
    assert torch.equal(wrapper.distiller.seen, backbone(batch("KD")["image"]))


def test_of_what_a_teacher_returns_only_logits_change() -> None:
    class Seen(Pieces):
        def others(self, image: Tensor) -> list[Tensor]:
            self.seen = self.teacher(image)
            return [self.seen[1]]

    def run(output: Any, weights: Tensor) -> Any:
        inner: Any = build("own: one tensor")
        distiller = Seen(inner.student, TeacherOf(inner.teacher, output))
        wrapper = TLLMWrapper(distiller, NUM_CLASSES).train()
        wrapper.set_teaching_weights(weights)
        wrapper(**batch("own: one tensor"))
        return distiller.seen

    def listed(logits: Tensor) -> Any:
        # Features may have as many entries as there are classes.
        return [logits + 1, logits[:, :2]], logits

    (plain, mixed) = (run(listed, weights) for weights in (torch.ones(NUM_CLASSES), BETWEEN))
    assert all(torch.equal(one, other) for one, other in zip(plain[0], mixed[0], strict=True))
    expected = mixed_by_hand(plain[1], batch("KD")["target"], BETWEEN, 1.0).float()
    torch.testing.assert_close(mixed[1], expected)
    with pytest.raises(ConfigError, match=r"Expected the teacher to return one tensor of logits, of shape \(12, 6\)"):
        run(lambda logits: (logits, logits + 1), BETWEEN)
    # Features alone.
    assert run(lambda logits: (logits[:, :2], logits[:, :1]), BETWEEN)[1].shape == (12, 1)


def test_features_may_be_changed_in_place() -> None:
    class InPlace(BUILDERS["one_element_losses"]):  # type: ignore[misc,name-defined]
        def losses(self, image: Tensor, target: Tensor, **keywords: Any) -> Any:
            logits, features = self.student(image)
            return logits, {"loss_kd": features["pooled_feat"].mul_(2).mean()}

    inner = build("KD")
    wrapper = TLLMWrapper(InPlace(inner.student, inner.teacher), NUM_CLASSES).train()
    wrapper.set_teaching_weights(BETWEEN)
    _, losses = wrapper(**batch("KD"))
    losses["loss_kd"].backward()


def test_context_of_cid_sees_the_mixed_teacher_in_every_epoch() -> None:
    wrapper, keywords = wrap("CID_warmup", BETWEEN), batch("CID_warmup")
    wrapper(**keywords)
    plain = wrap("CID_warmup", torch.ones(NUM_CLASSES))
    plain(**keywords)
    weight, plain_weight = (module.student.context_weight for module in (wrapper, plain))  # type: ignore[union-attr]
    assert EPOCH and torch.equal(weight[BETWEEN == 1], plain_weight[BETWEEN == 1])
    assert bool((weight > plain_weight)[BETWEEN < 1].all())
