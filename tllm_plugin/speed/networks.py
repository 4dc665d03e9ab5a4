"""Fold BatchNorm into convolutions, and convert networks and inputs to another precision and memory format."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval

from tllm_plugin.core.outputs import map_tensors, tensors_in

#: Largest difference of a folded network's outputs in units of the largest value: rounding of single precision.
_ROUNDING = 1e-3


def inference_copy(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> nn.Module:
    """Return a frozen copy in evaluation mode without hooks, its BatchNorm folded where that changes nothing.

    Args:
        network: In single precision.
        args: Arguments of a call, on which the folded copy is compared with the network.
        kwargs: Keywords of that call.
    """
    copied = copy.deepcopy(network).eval().requires_grad_(False)
    for hooks in (copied._forward_hooks, copied._forward_pre_hooks, copied._backward_hooks, copied._backward_pre_hooks):
        hooks.clear()
    folded = copy.deepcopy(copied)
    with torch.no_grad():
        expected = copied(*args, **kwargs)
        _fold(folded, args, kwargs)
        found = folded(*args, **kwargs)
    pairs = list(zip(tensors_in(expected), tensors_in(found), strict=True))
    same = all(float((one - other).abs().max()) <= _ROUNDING * float(one.abs().max() + 1e-6) for one, other in pairs)
    return folded if same else copied


def _fold(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """Fold each BatchNorm whose input is the output of a convolution that is called once, in place."""
    made: dict[int, nn.Conv2d] = {}
    outputs: list[Tensor] = []  # Kept alive, so that their identities stay their own.
    pairs: dict[nn.Module, nn.Module | None] = {}
    calls: dict[nn.Module, int] = {}

    def note(module: nn.Module, given: tuple[Any, ...], output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            made[id(output)] = module
            outputs.append(output)
        else:
            pairs[module] = made.get(id(given[0]))

    watched = [module for module in network.modules() if type(module) in (nn.Conv2d, nn.BatchNorm2d)]
    hooks = [module.register_forward_hook(note) for module in watched]
    try:
        network(*args, **kwargs)
    finally:
        for hook in hooks:
            hook.remove()
    new: dict[nn.Module, nn.Module] = {}
    for norm, convolution in pairs.items():
        if convolution is not None and calls[norm] == calls[convolution] == 1 and norm.running_mean is not None:
            new[convolution] = fuse_conv_bn_eval(convolution, norm)  # type: ignore[type-var, arg-type]
            new[norm] = nn.Identity()
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if child in new:
                setattr(parent, name, new[child])


def to_bfloat16(network: nn.Module) -> nn.Module:
    """Convert a frozen network in place; BatchNorm that is left keeps its statistics in single precision."""
    network.bfloat16()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.float()
    return network


def images_as(value: Any, dtype: torch.dtype | None, *, channels_last: bool) -> Any:
    """Return arguments with their images (n, C, H, W) in a precision (None: as they are) and memory format."""
    form = torch.channels_last if channels_last else torch.preserve_format

    def convert(tensor: Tensor) -> Tensor:
        if tensor.dim() != 4 or not tensor.is_floating_point():
            return tensor
        return tensor.to(dtype or tensor.dtype, memory_format=form)

    return map_tensors(value, convert)


def compiled(function: Callable[..., Any], *, frozen: bool) -> Callable[..., Any]:
    """Return a compiled function whose images may have any number of rows without being compiled again.

    Args:
        function: Of images and other arguments.
        frozen: Treat the weights as constants, which compilers may fold and lay out for the processor; for inference.
    """
    made = torch.compile(function, options={"freezing": True} if frozen else None)

    def call(*args: Any, **kwargs: Any) -> Any:
        for tensor in tensors_in((args, kwargs)):
            if tensor.dim() == 4 and tensor.shape[0] > 1:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)  # type: ignore[attr-defined]
        # A wrapper looks on at its first call by a mode, which the compiler would have to compile as well.
        with torch._C.DisableTorchFunction():
            return made(*args, **kwargs)

    return call
