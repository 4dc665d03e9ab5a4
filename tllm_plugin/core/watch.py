"""Looks on while a distiller is called for the first time: do the rows that it combines stay together under TLLM?"""

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
    """Follows the rows of a batch through one call of a distiller; computes nothing and changes nothing.

    Once classes are flagged, a distiller sees the distillable rows of what its student returns, of its teacher and of
    the keywords, but all rows of the images and of everything that is taken from inside the student. What combines a
    tensor of the one kind with one of the other would fail, or silently broadcast, in the first batch with a flagged
    class; here it is an error in the first batch of all.

    Args:
        images: Images of the batch, (n, ...).
        batched: Other batched keywords; of the distillable rows, if only these are seen.
        rows: How many rows a batched tensor may have: n, and n_d.

    Raises:
        ConfigError: Raised where the two kinds are combined.
    """

    def __init__(self, images: Iterable[Tensor], batched: Iterable[Tensor], rows: Iterable[int]) -> None:
        super().__init__()
        self._given = list(images)  # Kept alive with their kinds, which go with the tensors.
        self._rows = frozenset(rows)
        self._networks: list[tuple[str, bool]] = []
        #: Tensor -> why it keeps all rows; "" if it has the distillable ones.
        self._kinds = WeakIdKeyDictionary()
        self._note(batched, _ROUTED)
        self._note(self._given, _IMAGES)
        #: What every call of the student itself was given, and whether another network was called before.
        self.student_calls: list[tuple[list[Tensor], bool]] = []
        self._others_called = False

    def enter(self, network: str, *, own: bool, given: Iterable[Tensor]) -> None:
        """Take note that a network is called: "student" or "teacher", itself (`own`) or a copy of it."""
        if own:
            self.student_calls.append((list(given), self._others_called))
        elif not self._networks:
            self._others_called = True
        self._networks.append((network, own))

    def leave(self, returned: Iterable[Tensor]) -> None:
        """Take note that the network that was entered last has returned."""
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
            # What does nothing may return the images themselves.
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
    # No more than what functions of PyTorch take and return, for it is asked of each of them.
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _tensors(item)
    elif isinstance(value, dict):
        yield from _tensors(list(value.values()))


def can_watch(distiller: torch.nn.Module) -> bool:
    """Tell whether calls of `distiller` can be looked at: a compiled network would be compiled once more for it."""
    return not any(
        hasattr(module, "_orig_mod") or getattr(module, "_compiled_call_impl", None) is not None
        for module in distiller.modules()
    )
