"""Check on one batch what must hold of the wrapper around any distiller."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.contract import named_losses
from tllm_plugin.core.wrapper import TLLMWrapper

_SMOOTHING = 0.1


def check_invariants(wrapper: TLLMWrapper, kwargs: Mapping[str, Any], target: Tensor, flags: Tensor) -> str:
    """Return which invariant does not hold on a batch, in one line, or an empty string if all hold.

    With no class flagged, the wrapper returns what the distiller returns, bit for bit. With all classes flagged, the
    losses add up to label-smoothed cross-entropy. With some flagged, the teacher receives the distillable rows only,
    and the student's gradients are finite. Every check works on copies of the distiller.

    Args:
        wrapper: A wrapper in training mode.
        kwargs: Keywords of a training call.
        target: (n,) int64, the labels among them.
        flags: (C,) bool, with some of the batch's classes flagged, but not all.
    """
    random = torch.get_rng_state()
    try:
        for check in (_nothing_flagged, _all_flagged, _some_flagged):
            torch.set_rng_state(random)
            problem = check(wrapper, kwargs, target, flags)
            if problem:
                return problem
    finally:
        torch.set_rng_state(random)
    return ""


def _copies(wrapper: TLLMWrapper, flags: Tensor) -> tuple[nn.Module, TLLMWrapper]:
    """Return a copy of the inner distiller, and a wrapper with these flags around another copy."""
    inner = [copy.deepcopy(wrapper.distiller) for _ in range(2)]
    made = TLLMWrapper(inner[1], wrapper.num_classes, label_smoothing=_SMOOTHING, min_rows=wrapper.min_rows)
    made.train().to(flags.device).set_undistillable(flags)
    return inner[0].train(), made


def _nothing_flagged(wrapper: TLLMWrapper, kwargs: Mapping[str, Any], target: Tensor, flags: Tensor) -> str:
    inner, made = _copies(wrapper, torch.zeros_like(flags))
    random = torch.get_rng_state()
    logits, losses = inner(**kwargs)
    torch.set_rng_state(random)
    wrapped_logits, wrapped_losses = made(**kwargs)
    plain, wrapped = named_losses(losses), named_losses(wrapped_losses)
    if not torch.equal(logits, wrapped_logits) or not all(torch.equal(plain[name], wrapped[name]) for name in plain):
        return "with no class flagged, the wrapper returns something else than the distiller"
    return ""


def _all_flagged(wrapper: TLLMWrapper, kwargs: Mapping[str, Any], target: Tensor, flags: Tensor) -> str:
    _, made = _copies(wrapper, torch.ones_like(flags))
    calls: list[None] = []
    if made.teacher is not None:
        made.teacher.register_forward_hook(lambda module, args, output: calls.append(None))
    logits, losses = made(**kwargs)
    if calls:
        return f"with all classes flagged, the teacher is called {len(calls)} times"
    expected = float(F.cross_entropy(logits, target, label_smoothing=_SMOOTHING))
    total = sum(float(loss.mean()) for loss in named_losses(losses).values())
    if abs(total - expected) > 1e-4 * abs(expected) + 1e-5:
        return f"with all classes flagged, the losses add up to {total:.6f}, not the cross-entropy {expected:.6f}"
    return ""


def _some_flagged(wrapper: TLLMWrapper, kwargs: Mapping[str, Any], target: Tensor, flags: Tensor) -> str:
    _, made = _copies(wrapper, flags)
    distillable = int((~flags[target]).sum())
    received: list[int] = []
    if made.teacher is not None:
        made.teacher.register_forward_hook(
            lambda module, args, output: received.extend(len(value) for value in args if isinstance(value, Tensor))
        )
    logits, losses = made(**kwargs)
    total: Any = sum(loss.mean() for loss in named_losses(losses).values())
    total.backward()
    if len(logits) != len(target) or logits.shape[1] < made.num_classes:
        return f"with some classes flagged, the logits have shape {tuple(logits.shape)}"
    if any(rows != distillable for rows in received):
        return f"the teacher receives {received} rows, of which {distillable} are distillable"
    gradients = [parameter.grad for parameter in made.student.parameters() if parameter.grad is not None]
    if not gradients or not all(torch.isfinite(gradient).all() for gradient in gradients):
        return "with some classes flagged, the student's gradients are not finite"
    return ""
