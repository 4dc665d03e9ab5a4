"""A student's forward pass for training under autocast, in channels_last and compiled; its weights stay float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tllm_plugin.speed.networks import compiled, images_as
from tllm_plugin.speed.outputs import cast
from tllm_plugin.speed.replacement import Replacement

#: Kinds of a fast student in the order in which they are tried.
STUDENTS = ("channels_last", "bfloat16")
#: On a CPU convolutions take four fifths of a step, forward and backward, and compiling makes no difference to them.
COMPILED_STUDENTS = ("compiled", "compiled bfloat16")


class FastStudent(Replacement):
    """Forward of a student in training mode; in evaluation mode the student is called as it is, in single precision.

    Args:
        student: In single precision. Its weights get the memory format channels_last.
        kind: One of `STUDENTS` or `COMPILED_STUDENTS`. Whatever it is, losses see float32.
    """

    def __init__(self, student: nn.Module, kind: str) -> None:
        super().__init__(student, "student")
        self.kind = kind
        self._halved = "bfloat16" in kind
        self._call: Callable[..., Any] = self.plain
        if "compiled" in kind:
            self._call = compiled(self.plain, frozen=False)

    def put_in(self) -> None:
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().put_in()

    def take_out(self) -> None:
        self.network.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        super().take_out()

    def applies(self) -> bool:
        return self.network.training

    def fast(self, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = images_as((args, kwargs), None, channels_last=True)
        device = next(self.network.parameters()).device.type
        if not self._halved:
            return cast(self._call(*args, **kwargs))
        with torch.autocast(device, dtype=torch.bfloat16):
            output = self._call(*args, **kwargs)
        return cast(output)
