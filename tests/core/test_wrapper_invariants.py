"""The wrapper's five invariants, for every method of the embedded host and for awkward distillers."""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch

from tests.distiller_cases import (
    BUILDERS,
    EPOCH,
    NAMES,
    NUM_CLASSES,
    SEPARABLE,
    WITH_TEACHER,
    Calls,
    batch,
    build,
    total,
)
from tests.wrapper_checks import (
    FOR_ALL,
    bf16_autocast,
    compiled_networks,
    few_distillable_rows_give_finite_losses_and_gradients,
    flags,
    freeze_batch_norm,
    mixed_batch_runs_the_student_once_and_shows_the_teacher_distillable_rows_only,
    separable_losses_are_the_row_weighted_sum_of_their_parts,
    wrap,
)
from tllm_plugin import TLLMWrapper


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("check", FOR_ALL, ids=lambda check: check.__name__)
def test_every_distiller(check: Callable[[str], None], name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_mixed_batches(name: str) -> None:
    mixed_batch_runs_the_student_once_and_shows_the_teacher_distillable_rows_only(name)


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_losses(name: str) -> None:
    separable_losses_are_the_row_weighted_sum_of_their_parts(name)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("distillable", [0, 1, 2])
def test_few_distillable_rows(name: str, distillable: int) -> None:
    few_distillable_rows_give_finite_losses_and_gradients(name, distillable)


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast(name: str) -> None:
    bf16_autocast(name)


@pytest.mark.parametrize("style", ["module", "in_place"])
def test_compiled_networks(style: str) -> None:
    compiled_networks("KD", style, [[], [1, 4], [0, 1, 2, 3], list(range(NUM_CLASSES))])


def test_batch_coupled_losses_see_relations_among_distillable_rows_only() -> None:
    wrapper, inner = wrap("one_element_losses", [2]), build("one_element_losses")
    freeze_batch_norm(wrapper)
    freeze_batch_norm(inner)
    keywords = batch("one_element_losses")
    keep = keywords["target"] != 2
    _, losses = wrapper(**keywords)
    _, inner_losses = inner(image=keywords["image"][keep], target=keywords["target"][keep])
    assert losses["loss_kd"].shape == (1,)
    torch.testing.assert_close(losses["loss_kd"], inner_losses["loss_kd"] * keep.sum() / 12)


def test_min_rows_is_the_smallest_number_that_is_taught() -> None:
    for rows, counted in ((3, 1), (4, 0)):
        wrapper = wrap("KD", [0], min_rows=4)
        keywords = batch("KD", rows=8)
        keywords["target"] = torch.tensor([1] * rows + [0] * (8 - rows))
        teacher = Calls(wrapper.teacher)
        wrapper(**keywords)
        assert (wrapper.few_rows_steps, len(teacher.inputs)) == (counted, 1 - counted)


def test_batched_keywords_are_sliced_and_others_arrive_as_they_are() -> None:
    wrapper = wrap("wants_keywords", [1])
    keywords = batch("wants_keywords")
    keep = keywords["target"] != 1
    wrapper(**keywords)
    given = wrapper.distiller.given
    assert torch.equal(given["index"], keywords["index"][keep])
    assert torch.equal(given["contrastive_index"], keywords["contrastive_index"][keep])
    assert given["class_weights"] is keywords["class_weights"]
    assert given["epoch"] == EPOCH
    assert given["note"] == "as it is"


def test_all_rows_distillable_is_untouched_although_a_class_is_flagged() -> None:
    wrapper, inner = wrap("KD", [5]), build("KD")
    keywords = batch("KD", rows=5)  # classes 0 to 4
    logits, losses = wrapper(**keywords)
    inner_logits, inner_losses = inner(**keywords)
    assert torch.equal(logits, inner_logits)
    assert all(torch.equal(losses[key], inner_losses[key]) for key in inner_losses)


@pytest.mark.parametrize(
    ("names", "gets_it"), [(("loss_kd",), "loss_kd"), (("loss_kd", "cls_loss"), "cls_loss"), (("kd", "ce"), "ce")]
)
def test_the_cross_entropy_is_added_to_a_loss_that_the_trainer_knows(names: tuple[str, ...], gets_it: str) -> None:
    class Renamed(BUILDERS["teacher_in_train_mode"]):  # type: ignore[misc,name-defined]
        def losses(self, **keywords: Any) -> Any:
            logits, losses = super().losses(**keywords)
            return logits, {name: losses["loss_kd"] for name in names}

    inner = build("KD")
    wrapper = TLLMWrapper(Renamed(inner.student, inner.teacher), NUM_CLASSES).train()
    _, unflagged = wrapper(**batch("KD", rows=12))
    for module_flags in (flags([5]), flags(range(NUM_CLASSES))):
        wrapper.set_undistillable(module_flags)
        _, losses = wrapper(**batch("KD", rows=12))
        # Trainers read losses by name, and replicas are gathered by name.
        assert list(losses) == list(unflagged) == list(names)
    # No row has a teacher: what is left is the cross-entropy.
    assert {name for name, loss in losses.items() if loss > 0} == {gets_it}


def test_two_wrappers_of_one_student_route_separately() -> None:
    inner = build("KD")
    first, second = (TLLMWrapper(inner, NUM_CLASSES).train() for _ in range(2))
    second.set_undistillable(flags([1, 4]))
    logits, _ = second(**batch("KD"))
    assert logits.shape == (12, NUM_CLASSES)
    first.set_undistillable(flags([0]))
    assert first(**batch("KD"))[0].shape == (12, NUM_CLASSES)


def test_state_travels_through_a_checkpoint_that_loads_without_unpickling() -> None:
    wrapper = wrap("KD", [1, 4])
    holder = _Counter(7)
    wrapper.carry("counter", holder)
    keywords = batch("KD", rows=4)
    keywords["target"] = torch.tensor([0, 1, 1, 4])
    wrapper(**keywords)
    file = io.BytesIO()
    torch.save(wrapper.state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)
    assert [key for key in state if key.endswith("student.fc.weight")] == ["distiller.student.fc.weight"]

    other = wrap("KD", [])
    other.load_state_dict(state)
    late = _Counter(0)
    other.carry("counter", late)
    assert late.value == 7
    assert other.few_rows_steps == 1
    assert torch.equal(other.undistillable, flags([1, 4]))
    ours, theirs = wrapper(**batch("KD")), other(**batch("KD"))
    assert torch.equal(total(ours[1]), total(theirs[1])), "the loaded flags must take effect"


class _Counter:
    def __init__(self, value: int) -> None:
        self.value = value

    def state_dict(self) -> dict[str, Any]:
        return {"value": self.value}

    def load_state_dict(self, state: Any) -> None:
        self.value = state["value"]


def test_attributes_of_the_inner_distiller_are_reachable() -> None:
    wrapper = wrap("FITNET", [])
    assert wrapper.regressor is wrapper.distiller.regressor
    assert wrapper.get_extra_parameters() == sum(p.numel() for p in wrapper.regressor.parameters())
    assert wrap("NONE", []).teacher is None
    assert wrap("NONE", []).get_extra_parameters() == 0
    with pytest.raises(AttributeError, match="nonsense"):
        wrapper.nonsense  # noqa: B018


def test_evaluation_returns_the_inner_distillers_logits_whatever_is_flagged() -> None:
    wrapper = wrap("KD", [1, 4]).eval()
    image = batch("KD")["image"]
    assert torch.equal(wrapper(image=image), build("KD").eval()(image=image))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": True}, r"Expected `num_classes` to be .* but got True"),
        ({"num_classes": 6.0}, r"Expected `num_classes` to be .* but got 6.0"),
        ({"label_smoothing": "0.1"}, r"Expected `label_smoothing` to be in \[0, 1\), but got '0.1'"),
        ({"num_classes": 0}, r"Expected `num_classes` to be .* at least 1, but got 0"),
        ({"label_smoothing": 1.0}, r"Expected `label_smoothing` to be in \[0, 1\), but got 1.0"),
        ({"ce_weight": float("nan")}, r"Expected `ce_weight` to be at least 0, but got nan"),
        ({"min_rows": 0}, r"Expected `min_rows` to be .* at least 1, but got 0"),
    ],
)
def test_bad_arguments(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TLLMWrapper(build("KD"), **{"num_classes": NUM_CLASSES, **options})
