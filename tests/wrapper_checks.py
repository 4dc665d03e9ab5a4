"""Checks of the wrapper that any inner distiller must pass; the tests of the core and of every host run them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.distiller_cases import (
    NUM_CLASSES,
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
from tllm_plugin.core.outputs import map_tensors

#: Teaching weights of the classes, without and with a flagged one.
BETWEEN = torch.tensor([1.0, 0.3, 0.85, 1.0, 0.05, 0.999])
WITH_ZERO = torch.tensor([1.0, 0.3, 0.0, 1.0, 0.05, 0.0])


def flags(classes: list[int]) -> Tensor:
    """Return (C,) bool, True for the given classes."""
    result = torch.zeros(NUM_CLASSES, dtype=torch.bool)
    result[classes] = True
    return result


def wrap(name: str, treated: list[int] | Tensor, **options: Any) -> TLLMWrapper:
    """Return a wrapped distiller with some classes flagged (a list), or with teaching weights (a tensor)."""
    wrapper = TLLMWrapper(build(name), NUM_CLASSES, **options).train()
    treat(wrapper, treated)
    return wrapper


def treat(wrapper: TLLMWrapper, treated: list[int] | Tensor) -> None:
    """Flag classes, or set teaching weights; see `wrap`."""
    if isinstance(treated, Tensor):
        wrapper.set_teaching_weights(treated)
    else:
        wrapper.set_undistillable(flags(treated))


def gradients(module: nn.Module) -> dict[str, Tensor | None]:
    return {name: parameter.grad for name, parameter in module.named_parameters()}


def check_equal(one: nn.Module, other: nn.Module, keywords: dict[str, Any]) -> None:
    results = []
    for module in (one, other):
        torch.manual_seed(5)
        logits, losses = module(**keywords)
        total(losses).backward()
        results.append((logits, named(losses), torch.get_rng_state()))
    (logits, losses, rng), (other_logits, other_losses, other_rng) = results
    assert torch.equal(logits, other_logits) and torch.equal(rng, other_rng)
    assert list(losses) == list(other_losses)
    assert all(torch.equal(losses[key], other_losses[key]) for key in losses)
    inner = [getattr(module, "distiller", module) for module in (one, other)]
    states = [module.state_dict() for module in inner]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    found, other_found = map(gradients, inner)
    assert any(gradient is not None for gradient in found.values())
    for path, gradient in found.items():
        same = other_found[path]
        assert (gradient is None) == (same is None)
        assert gradient is None or same is None or torch.equal(gradient, same)


def freeze_batch_norm(module: nn.Module) -> None:
    """Make rows independent of each other, so that parts of a batch can be computed separately."""
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eval()
            # A host's loop puts its modules into training mode with every batch.
            part.train = lambda mode=True, part=part: part  # type: ignore[method-assign,assignment,misc]


def nothing_flagged_is_the_inner_distiller_bit_for_bit(name: str) -> None:
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


def everything_flagged_is_label_smoothing_without_a_teacher(name: str) -> None:
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


def every_zero_loss_reaches_every_learnable_parameter(name: str) -> None:
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


def mixed_batch_runs_the_student_once_and_shows_the_teacher_distillable_rows_only(name: str) -> None:
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


def undistillable_rows_logit_gradients_come_from_label_smoothing_alone(name: str) -> None:
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


def separable_losses_are_the_row_weighted_sum_of_their_parts(name: str) -> None:
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


def few_distillable_rows_give_finite_losses_and_gradients(name: str, distillable: int) -> None:
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


def any_distiller_can_be_balanced(name: str) -> None:
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


def replicas_in_threads_do_not_disturb_each_other(name: str, treated: list[int] | Tensor = [1, 4]) -> None:  # noqa: B006
    wrapper, seen = wrap(name, treated), wrap(name, [])
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


def bf16_autocast(name: str, treated: list[int] | Tensor = [1, 4], atol: float = 0.05) -> None:  # noqa: B006
    wrapper = wrap(name, treated)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits, losses = wrapper(**batch(name))
    total(losses).backward()
    exact = wrap(name, treated)(**batch(name))
    torch.testing.assert_close(logits.float(), exact[0], atol=0.1, rtol=0.1)
    torch.testing.assert_close(total(losses).float(), total(exact[1]), atol=atol, rtol=0.1)


def channels_last(name: str) -> None:
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


def compiled_networks(name: str, style: str, treatments: list[list[int] | Tensor]) -> None:
    """Compare compiled networks with plain ones, gradients included, as the treatment of the classes changes."""
    inner = build(name)
    for part in ("student", "teacher"):
        network = inner.get_submodule(part)
        if style == "module":
            setattr(inner, part, torch.compile(network, backend="aot_eager"))
        else:
            network.compile(backend="aot_eager")
    wrapper = TLLMWrapper(inner, NUM_CLASSES).train()
    for treated in treatments:
        treat(wrapper, treated)
        plain = wrap(name, treated)
        plain.load_state_dict({key.replace("_orig_mod.", ""): value for key, value in wrapper.state_dict().items()})
        results = []
        for module in (wrapper, plain):
            module.zero_grad()
            logits, losses = module(**batch(name))
            total(losses).backward()
            results.append((logits, total(losses), [p.grad for p in module.get_learnable_parameters()]))
        torch.testing.assert_close(*results)


def mixed_by_hand(logits: Tensor, target: Tensor, weights: Tensor, temperature: float) -> Tensor:
    """Return T times the log of the mixture, the row's logsumexp added, in double precision."""
    scaled = logits.double() / temperature
    share = weights.double()[target].unsqueeze(1)
    probability = share * scaled.softmax(1) + (1 - share) * F.one_hot(target, logits.shape[1])
    return temperature * (probability.log() + scaled.logsumexp(1, keepdim=True))


def taught_by_hand(name: str, weights: Tensor, target: Tensor, temperature: float) -> nn.Module:
    """Return a distiller without a wrapper whose teacher gives mixed logits and whose features carry less gradient."""
    inner: Any = build(name)

    def pick(output: Any) -> Tensor:
        """Return logits, which some hosts' networks give after their features."""
        if hasattr(inner, "pick"):
            return inner.pick(output)  # type: ignore[no-any-return]
        return next(item for item in output if isinstance(item, Tensor) and item.shape == (len(target), NUM_CLASSES))

    def teach(module: nn.Module, args: Any, output: Any) -> Any:
        logits = next(item for item in output if isinstance(item, Tensor))
        mixed = mixed_by_hand(logits, target, weights, temperature).to(logits.dtype)
        return tuple(mixed if item is logits else item for item in output)

    def lessen(module: nn.Module, args: Any, output: Any) -> Any:
        logits = pick(output)
        mappings = [item for item in output if isinstance(item, dict)] if isinstance(output, (tuple, list)) else []
        own = next((item["own_logits"] for item in mappings if "own_logits" in item), None)

        def lessened(tensor: Tensor) -> Tensor:
            if tensor is logits or tensor is own:
                return tensor
            share = weights[target].reshape(-1, *(1,) * (tensor.dim() - 1))
            return share * tensor + (1 - share) * tensor.detach()

        return map_tensors(output, lessened)

    inner.teacher.register_forward_hook(teach)
    inner.student.register_forward_hook(lessen)
    return inner


def losses_and_gradients_are_those_of_mixed_targets_and_weighted_features(name: str) -> None:
    wrapper, keywords = wrap(name, BETWEEN), batch(name)
    temperature = getattr(wrapper.distiller, "temperature", 1.0)
    reference = taught_by_hand(name, BETWEEN, keywords["target"], temperature)
    logits, losses = wrapper(**keywords)
    expected_outputs, expected = reference(**keywords)
    assert torch.equal(logits, expected_outputs)
    assert type(losses) is type(expected)
    for key, loss in named(expected).items():
        torch.testing.assert_close(named(losses)[key], loss, atol=1e-5, rtol=1e-4)
    total(losses).backward()
    total(expected).backward()
    found = gradients(wrapper.distiller)
    assert any(gradient is not None for gradient in found.values())
    for path, gradient in gradients(reference).items():
        if gradient is None:
            assert found[path] is None
        else:
            torch.testing.assert_close(found[path], gradient, atol=2e-5, rtol=1e-3)


def rows_of_weight_one_are_taught_bit_for_bit_beside_a_class_that_is_taught_less(name: str) -> None:
    weights = torch.ones(NUM_CLASSES)
    weights[5] = 0.5
    check_equal(build(name), wrap(name, weights), batch(name, rows=5))  # Classes 0 to 4.


def flagged_rows_are_treated_bit_for_bit_alike_beside_a_class_that_is_taught_less(name: str) -> None:
    weights = torch.tensor([1.0, 0.0, 1.0, 1.0, 0.0, 0.5])
    by_flags = wrap(name, torch.ones(NUM_CLASSES))
    by_flags.set_undistillable(weights == 0)
    keywords = batch(name)
    keywords["target"] = torch.arange(12) % 5
    check_equal(by_flags, wrap(name, weights), keywords)


#: For every distiller.
FOR_ALL: tuple[Callable[[str], None], ...] = (
    nothing_flagged_is_the_inner_distiller_bit_for_bit,
    everything_flagged_is_label_smoothing_without_a_teacher,
    every_zero_loss_reaches_every_learnable_parameter,
    undistillable_rows_logit_gradients_come_from_label_smoothing_alone,
    replicas_in_threads_do_not_disturb_each_other,
    any_distiller_can_be_balanced,
    channels_last,
)
#: Of teaching weights between 0 and 1, for every distiller with a teacher.
WEIGHTED: tuple[Callable[[str], None], ...] = (
    losses_and_gradients_are_those_of_mixed_targets_and_weighted_features,
    rows_of_weight_one_are_taught_bit_for_bit_beside_a_class_that_is_taught_less,
    flagged_rows_are_treated_bit_for_bit_alike_beside_a_class_that_is_taught_less,
)
