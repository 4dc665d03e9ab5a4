"""Check during a distiller's first call that all tensors that it combines will have the same rows under TLLM."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakIdKeyDictionary

from tllm_plugin.core.errors import ConfigError

# Of a second tensor these read dtype and device only.
_READS_ONE = (Tensor.to, Tensor.type_as)
_ROUTED = ""
_IMAGES = "comes from the images past student and teacher"
_INSIDE = "comes from inside the student, past what it returns"


class Watch(TorchFunctionMode):
    """Trace the rows of a batch through one call of a distiller, without computing or changing anything.

    Once classes are flagged, a distiller sees only the distillable rows of the student's and the teacher's outputs and
    of the keywords, but all rows of the images and of tensors taken from inside the student. An operation that
    combines the two kinds would fail, or silently broadcast, in the first batch with a flagged class. This class
    raises an error for it in the very first batch.

    Args:
        images: Images of the batch, (n, ...).
        batched: Other batched keywords, possibly sliced to the distillable rows.
        rows: Possible row counts of a batched tensor: n and n_d.

    Raises:
        ConfigError: An operation combines the two kinds.
    """

    def __init__(self, images: Iterable[Tensor], batched: Iterable[Tensor], rows: Iterable[int]) -> None:
        super().__init__()
        self._given = list(images)  # Kept alive with their kinds, which go with the tensors.
        self._rows = frozenset(rows)
        self._networks: list[tuple[str, bool]] = []
        #: Tensor -> reason why it has all rows; "" if it has only the distillable rows.
        self._kinds = WeakIdKeyDictionary()
        self._note(batched, _ROUTED)
        self._note(self._given, _IMAGES)
        #: For each call of the student: its input tensors, and whether another network was called before.
        self.student_calls: list[tuple[list[Tensor], bool]] = []
        self._others_called = False

    def enter(self, network: str, *, own: bool, given: Iterable[Tensor]) -> None:
        """Record the start of a call of "student" or "teacher"; `own` is False for a copy of the network."""
        if own:
            self.student_calls.append((list(given), self._others_called))
        elif not self._networks:
            self._others_called = True
        self._networks.append((network, own))

    def leave(self, returned: Iterable[Tensor]) -> None:
        """Record the return of the network that was entered last."""
        self._networks.pop()
        self._note(returned, _ROUTED)

    def _note(self, tensors: Iterable[Tensor], kind: str) -> None:
        for tensor in tensors:
            if tensor.dim() and tensor.shape[0] in self._rows:
                self._kinds[tensor] = kind

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        keywords = kwargs or {}
        if self._networks:
            result = func(*args, **keywords)
            # A module without effect may return the images themselves.
            new = [tensor for tensor in _tensors(result) if tensor not in self._kinds]
            self._note(new, _INSIDE if self._networks[-1][0] == "student" else _ROUTED)
            return result
        given = list(_tensors(args[:1] if func in _READS_ONE else (args, keywords)))
        known = [(tensor, self._kinds[tensor]) for tensor in given if tensor in self._kinds]
        apart = next(((tensor, kind) for tensor, kind in known if kind), None)
        together = next((tensor for tensor, kind in known if not kind), None)
        if apart is not None and together is not None:
            raise ConfigError(
                f"Expected the distiller to combine what `student` and `teacher` return, their deep copies included, "
                f"and batched keywords with each other only, but `{getattr(func, '__name__', func)}` combines a tensor "
                f"of shape {tuple(together.shape)} of these with one of shape {tuple(apart[0].shape)} that {apart[1]}: "
                "once a class is flagged, the two have different rows"
            )
        result = func(*args, **keywords)
        if known:
            self._note(_tensors(result), apart[1] if apart is not None else _ROUTED)
        return result


def _tensors(value: Any) -> Iterable[Tensor]:
    # Only the types that PyTorch functions accept and return, because every function call is inspected.
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def can_watch(distiller: torch.nn.Module) -> bool:
    """Return whether calls of `distiller` can be traced; a compiled network cannot, as it would be recompiled."""
    return not any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in distiller.modules()
    )
