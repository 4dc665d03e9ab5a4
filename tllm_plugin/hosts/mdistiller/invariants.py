"""What must hold of the wrapper around any distiller, checked on one batch of a run."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.contract import named_losses
from tllm_plugin.core.wrapper import TLLMWrapper


def check_invariants(wrapper: TLLMWrapper, kwargs: Mapping[str, Any]) -> str:
    """Return which invariant a batch breaks, in one line; empty if all hold.

    The distiller is copied for each: nothing of the run is changed but what its own random numbers are restored to.

    Args:
        wrapper: In training.
        kwargs: Of a training call, in which some classes are flagged.
    """
    random = torch.get_rng_state()
    try:
        for check in (_nothing_flagged, _all_flagged, _mixed):
            torch.set_rng_state(random)
            problem = check(wrapper, kwargs)
            if problem:
                return problem
    finally:
        torch.set_rng_state(random)
    return ""


def _copies(wrapper: TLLMWrapper, flags: Tensor) -> tuple[nn.Module, TLLMWrapper]:
    """Return a copy of the inner distiller, and a wrapper with these flags around another one."""
    inner = [copy.deepcopy(wrapper.distiller) for _ in range(2)]
    made = TLLMWrapper(inner[1], wrapper.num_classes, label_smoothing=0.1, min_rows=wrapper.min_rows)
    made.train().to(flags.device).set_undistillable(flags)
    inner[0].train()
    return inner[0], made


def _nothing_flagged(wrapper: TLLMWrapper, kwargs: Mapping[str, Any]) -> str:
    inner, made = _copies(wrapper, torch.zeros_like(wrapper.undistillable))
    random = torch.get_rng_state()
    plain = inner(**kwargs)
    torch.set_rng_state(random)
    wrapped = made(**kwargs)
    pairs = [(plain[0], wrapped[0]), *_pairs(plain[1], wrapped[1])]
    if not all(torch.equal(one, other) for one, other in pairs):
        return "with nothing flagged, the wrapper returns something else than the distiller"
    return ""


def _all_flagged(wrapper: TLLMWrapper, kwargs: Mapping[str, Any]) -> str:
    _, made = _copies(wrapper, torch.ones_like(wrapper.undistillable))
    logits, losses = made(**kwargs)
    expected = F.cross_entropy(logits, kwargs["target"].long(), label_smoothing=0.1)
    total = sum(loss.mean() for loss in named_losses(losses).values())
    if not torch.allclose(torch.as_tensor(total), expected, rtol=1e-4, atol=1e-5):
        return f"with all flagged, the losses add up to {float(total):.6f}, not the cross-entropy {float(expected):.6f}"
    return ""


def _mixed(wrapper: TLLMWrapper, kwargs: Mapping[str, Any]) -> str:
    _, made = _copies(wrapper, wrapper.undistillable)
    target = kwargs["target"].long()
    distillable = int((~made.undistillable[target]).sum())
    shown: list[int] = []
    teacher = made.teacher
    if teacher is not None:
        teacher.register_forward_hook(
            lambda module, args, output: shown.extend(len(value) for value in args if isinstance(value, Tensor))
        )
    logits, losses = made(**kwargs)
    total: Any = sum(loss.mean() for loss in named_losses(losses).values())
    total.backward()
    if logits.shape != (len(target), made.num_classes):
        return f"the logits of a mixed batch are of shape {tuple(logits.shape)}"
    if any(rows != distillable for rows in shown):
        return f"the teacher is shown {shown} rows, of which {distillable} are distillable"
    gradients = [parameter.grad for parameter in made.student.parameters() if parameter.grad is not None]
    if not gradients or not all(torch.isfinite(gradient).all() for gradient in gradients):
        return "the student's gradients of a mixed batch are not finite"
    return ""


def _pairs(plain: Any, wrapped: Any) -> list[tuple[Tensor, Tensor]]:
    first, second = named_losses(plain), named_losses(wrapped)
    return [(first[name], second[name]) for name in first]
