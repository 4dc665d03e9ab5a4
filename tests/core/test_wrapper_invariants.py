"""The wrapper's five invariants, for every method of the embedded host and for awkward distillers."""

from __future__ import annotations

import copy
import io
import threading
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distiller_cases import (
    BUILDERS,
    EPOCH,
    NAMES,
    NUM_CLASSES,
    SEPARABLE,
    WITH_TEACHER,
    WITHOUT_LABELS,
    Calls,
    batch,
    build,
    expected_logits,
    named,
    replica_of,
    total,
    trained_parameters,
)
from tllm_plugin import TLLMWrapper


def wrap(name: str, flagged: list[int], **options: Any) -> TLLMWrapper:
    wrapper = TLLMWrapper(build(name), NUM_CLASSES, **options).train()
    wrapper.set_undistillable(flags(flagged))
    return wrapper


def flags(classes: list[int]) -> Tensor:
    result = torch.zeros(NUM_CLASSES, dtype=torch.bool)
    result[classes] = True
    return result


def freeze_batch_norm(module: nn.Module) -> None:
    """Make rows independent of each other, so that parts of a batch can be computed separately."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
            # A host's loop puts its modules into training mode with every batch.
            part.train = lambda mode=True, part=part: part  # type: ignore[method-assign,assignment,misc]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_flagged_is_the_inner_distiller_bit_for_bit(name: str) -> None:
    inner, wrapper = build(name), wrap(name, [])
    results = []
    for module in (inner, wrapper):
        networks = (module.student, getattr(module, "teacher", None))
        calls = [Calls(network) for network in networks if network is not None]
        torch.manual_seed(5)
        logits, losses = module(**batch(name))
        total(losses).backward()
        results.append((logits, losses, torch.get_rng_state(), [len(each.inputs) for each in calls]))
    (logits, losses, rng, counts), (wrapped_logits, wrapped_losses, wrapped_rng, wrapped_counts) = results
    assert torch.equal(logits, wrapped_logits)
    assert type(losses) is type(wrapped_losses) and list(named(losses)) == list(named(wrapped_losses))
    assert all(torch.equal(named(losses)[key], named(wrapped_losses)[key]) for key in named(losses))
    assert torch.equal(rng, wrapped_rng)
    assert counts == wrapped_counts and min(counts) > 0
    state, wrapped_state = inner.state_dict(), wrapper.distiller.state_dict()
    assert all(torch.equal(state[key], wrapped_state[key]) for key in state)
    pairs = list(zip(inner.parameters(), wrapper.distiller.parameters(), strict=True))
    assert any(a.grad is not None for a, _ in pairs)
    for a, b in pairs:
        assert (a.grad is None) == (b.grad is None)
        assert a.grad is None or torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("name", NAMES)
def test_everything_flagged_is_label_smoothing_without_a_teacher(name: str) -> None:
    wrapper = wrap(name, list(range(NUM_CLASSES)), label_smoothing=0.1, ce_weight=0.7)
    reference = build(name)
    teacher = Calls(wrapper.teacher) if wrapper.teacher is not None else None
    student = Calls(wrapper.student)
    keywords = batch(name)
    logits, losses = wrapper(**keywords)
    alone = expected_logits(reference, keywords)
    expected = 0.7 * F.cross_entropy(alone, keywords["target"], label_smoothing=0.1)
    assert torch.equal(logits, alone)
    torch.testing.assert_close(total(losses), expected)
    assert teacher is None or teacher.inputs == []
    assert len(student.inputs) == 1
    assert wrapper.few_rows_steps == 0


@pytest.mark.parametrize("name", NAMES)
def test_every_zero_loss_reaches_every_learnable_parameter(name: str) -> None:
    wrapper = wrap(name, [])
    _, seen = wrapper(**batch(name))
    wrapper.set_undistillable(flags(list(range(NUM_CLASSES))))
    _, losses = wrapper(**batch(name))
    assert type(losses) is type(seen)
    losses, seen = named(losses), named(seen)
    assert {key: loss.shape for key, loss in losses.items()} == {key: loss.shape for key, loss in seen.items()}
    for key in losses:
        wrapper.zero_grad(set_to_none=True)
        losses[key].sum().backward(retain_graph=True)
        gradients = [parameter.grad for parameter in trained_parameters(wrapper)]
        assert all(gradient is not None for gradient in gradients), key
        is_ce = key in ("loss_ce", "ce")
        assert any(bool(gradient.any()) for gradient in gradients) == is_ce, key


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_mixed_batch_runs_the_student_once_and_shows_the_teacher_distillable_rows_only(name: str) -> None:
    wrapper = wrap(name, [1, 4])
    student, teacher = Calls(wrapper.student), Calls(wrapper.teacher)
    keywords = batch(name)
    keep = ~torch.isin(keywords["target"], torch.tensor([1, 4]))
    logits, _ = wrapper(**keywords)
    views = [keywords[key] for key in keywords if key.startswith("image")]
    assert len(student.inputs) == len(teacher.inputs) == len(views)
    prepare = getattr(wrapper.distiller, "prepare", lambda image: image)
    for view, student_input, teacher_input in zip(map(prepare, views), student.inputs, teacher.inputs, strict=True):
        assert torch.equal(student_input, view)
        assert torch.equal(teacher_input, view[keep])
    assert torch.equal(logits, expected_logits(build(name), keywords))


@pytest.mark.parametrize("name", NAMES)
def test_undistillable_rows_logit_gradients_come_from_label_smoothing_alone(name: str) -> None:
    wrapper = wrap(name, [1, 4], label_smoothing=0.1)
    keywords = batch(name)
    flagged = torch.isin(keywords["target"], torch.tensor([1, 4]))
    logits, losses = wrapper(**keywords)
    (gradient,) = torch.autograd.grad(total(losses), logits)
    rows = gradient.shape[0]
    leaf = logits.detach().requires_grad_()
    smoothed = F.cross_entropy(leaf, keywords["target"], label_smoothing=0.1, reduction="none")
    (expected,) = torch.autograd.grad(smoothed[flagged].sum() / rows, leaf)
    torch.testing.assert_close(gradient[flagged], expected[flagged])
    assert torch.allclose(gradient[~flagged], torch.zeros(())) == (name in WITHOUT_LABELS)


@pytest.mark.parametrize("name", SEPARABLE)
def test_separable_losses_are_the_row_weighted_sum_of_their_parts(name: str) -> None:
    wrapper, inner = wrap(name, [0, 3, 5], label_smoothing=0.2, ce_weight=0.5), build(name)
    freeze_batch_norm(wrapper)
    freeze_batch_norm(inner)
    keywords = batch(name, rows=11)
    keep = ~torch.isin(keywords["target"], torch.tensor([0, 3, 5]))
    _, losses = wrapper(**keywords)
    part = {k: v[keep] if isinstance(v, Tensor) and v.shape[0] == 11 else v for k, v in keywords.items()}
    _, inner_losses = inner(**part)
    logits = expected_logits(inner, keywords)[~keep]
    smoothed = F.cross_entropy(logits, keywords["target"][~keep], label_smoothing=0.2)
    distillable = int(keep.sum())
    expected = distillable / 11 * total(inner_losses) + (11 - distillable) / 11 * 0.5 * smoothed
    torch.testing.assert_close(total(losses), expected)


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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("distillable", [0, 1, 2])
def test_few_distillable_rows_give_finite_losses_and_gradients(name: str, distillable: int) -> None:
    wrapper = wrap(name, [0], label_smoothing=0.1)
    keywords = batch(name, rows=6)
    keywords["target"] = torch.tensor([1] * distillable + [0] * (6 - distillable))
    logits, losses = wrapper(**keywords)
    total(losses).backward()
    assert torch.isfinite(total(losses))
    for parameter in trained_parameters(wrapper):
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
    plain = F.cross_entropy(logits, keywords["target"], reduction="none")
    smoothed = F.cross_entropy(logits, keywords["target"], label_smoothing=0.1, reduction="none")
    expected = torch.where(keywords["target"] == 1, plain, smoothed).mean()
    torch.testing.assert_close(total(losses), expected)
    assert wrapper.few_rows_steps == (1 if distillable else 0)


@pytest.mark.parametrize("name", NAMES)
def test_any_distiller_can_be_balanced(name: str) -> None:
    wrapper, plain = (wrap(name, [1, 4], balance=balance) for balance in (True, False))
    logits, losses = wrapper(**batch(name))
    total(losses).backward()
    assert wrapper.balance is not None and 0 < wrapper.balance.latest.item() < float("inf")
    for parameter in trained_parameters(wrapper):
        assert parameter.grad is not None and bool(torch.isfinite(parameter.grad).all())
    # What is distilled is distilled as without it.
    plain_logits, plain_losses = plain(**batch(name))
    assert torch.equal(logits, plain_logits) and type(losses) is type(plain_losses)
    losses, plain_losses = named(losses), named(plain_losses)
    assert list(losses) == list(plain_losses)
    added = {"loss_ce", "ce"}
    assert all(torch.equal(losses[key], plain_losses[key]) for key in losses if key not in added)


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


@pytest.mark.parametrize("name", NAMES)
def test_replicas_in_threads_do_not_disturb_each_other(name: str) -> None:
    wrapper, seen = wrap(name, [1, 4]), wrap(name, [])
    # What losses are called, as after a resume: a replica without distillable rows cannot find out.
    seen(**batch(name))
    wrapper.set_extra_state(seen.get_extra_state())
    # What DataParallel does: modules copied shallowly, hook dictionaries and attributes shared.
    replicas = [replica_of(wrapper) for _ in range(4)]
    batches = [batch(name, rows=rows, seed=rows) for rows in (12, 5, 7, 12)]
    batches[1]["target"] = torch.tensor([1, 4, 1, 4, 1])
    expected = [copy.deepcopy(wrapper)(**keywords) for keywords in batches]
    results: list[Any] = [None] * 4
    barrier = threading.Barrier(4)

    def work(place: int) -> None:
        barrier.wait()
        for _ in range(5):
            results[place] = replicas[place](**batches[place])

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for (logits, losses), (alone, expected_losses) in zip(results, expected, strict=True):
        torch.testing.assert_close(logits, alone)
        assert set(named(losses)) == set(named(expected_losses))
        torch.testing.assert_close(total(losses), total(expected_losses))


@pytest.mark.parametrize("name", NAMES)
def test_bf16_autocast(name: str) -> None:
    wrapper = wrap(name, [1, 4])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, losses = wrapper(**batch(name))
    total(losses).backward()
    exact = wrap(name, [1, 4])(**batch(name))
    torch.testing.assert_close(logits.float(), exact[0], atol=0.1, rtol=0.1)
    torch.testing.assert_close(total(losses).float(), total(exact[1]), atol=0.05, rtol=0.1)


@pytest.mark.parametrize("name", NAMES)
def test_channels_last(name: str) -> None:
    wrapper = wrap(name, [1, 4]).to(memory_format=torch.channels_last)
    keywords = {
        key: value.contiguous(memory_format=torch.channels_last) if key.startswith("image") else value
        for key, value in batch(name).items()
    }
    logits, losses = wrapper(**keywords)
    total(losses).backward()
    exact = wrap(name, [1, 4])(**batch(name))
    torch.testing.assert_close(logits, exact[0], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(total(losses), total(exact[1]), atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("style", ["module", "in_place"])
def test_compiled_networks(style: str) -> None:
    inner = build("KD")
    if style == "module":
        inner.student = torch.compile(inner.student, backend="aot_eager")
        inner.teacher = torch.compile(inner.teacher, backend="aot_eager")
    else:
        inner.student.compile(backend="aot_eager")
        inner.teacher.compile(backend="aot_eager")
    wrapper = TLLMWrapper(inner, NUM_CLASSES).train()
    for flagged in ([], [1, 4], [0, 1, 2, 3], list(range(NUM_CLASSES))):
        wrapper.set_undistillable(flags(flagged))
        plain = wrap("KD", flagged)
        plain.load_state_dict(_without_compile_prefix(wrapper.state_dict()))
        logits, losses = wrapper(**batch("KD"))
        total(losses).backward()
        expected_logits, expected_losses = plain(**batch("KD"))
        torch.testing.assert_close(logits, expected_logits)
        torch.testing.assert_close(total(losses), total(expected_losses))


def _without_compile_prefix(state: dict[str, Any]) -> dict[str, Any]:
    return {key.replace("_orig_mod.", ""): value for key, value in state.items()}


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
