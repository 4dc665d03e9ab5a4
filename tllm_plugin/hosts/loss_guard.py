"""Stops a run whose loss is not finite, with the step, the rows and the part of the loss that did it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tllm_plugin.core.errors import NonFiniteLossError

_ROWS_SHOWN = 8


class LossGuard:
    """Collects the losses of every step and looks at them now and then: a look costs a device synchronisation.

    Checkpoints are written after a look, so what was written before stays valid.

    Args:
        check_every: Steps between looks, at least 1.
        rate: What the host calls the learning rate, for the message.
    """

    def __init__(self, check_every: int, rate: str = "SOLVER.LR") -> None:
        self.check_every = check_every
        self.rate = rate
        self.step = 0
        self._seen: list[tuple[int, int, tuple[str, ...], Tensor, Tensor | None]] = []

    def see(self, epoch: int, names: Iterable[str], values: Tensor, index: Tensor | None) -> None:
        """Take note of one step.

        Args:
            epoch: Counted from 1.
            names: Of the losses.
            values: (k,), their means.
            index: (n,) int64, rows of the batch in the training data; None where the host does not say.

        Raises:
            NonFiniteLossError: This step or one since the last look had a loss that is NaN or infinite.
        """
        self.step += 1
        self._seen.append((epoch, self.step, tuple(names), values.detach(), index))
        if len(self._seen) >= self.check_every:
            self.flush()

    def flush(self) -> None:
        """Look at what has been seen since the last look.

        Raises:
            NonFiniteLossError: See `see`.
        """
        seen, self._seen = self._seen, []
        # All in one look.
        if not seen or bool(torch.isfinite(torch.cat([item[3] for item in seen])).all()):
            return
        epoch, step, names, values, index = next(item for item in seen if not bool(torch.isfinite(item[3]).all()))
        parts = ", ".join(f"{name} = {value:g}" for name, value in zip(names, values.tolist(), strict=True))
        raise NonFiniteLossError(
            f"Expected finite losses, but got {parts} in epoch {epoch}, step {step} of this process{_rows(index)}; try "
            f"a lower {self.rate}. A checkpoint of an earlier epoch, if there is one, is still valid"
        )


def _rows(index: Tensor | None) -> str:
    if index is None:
        return ""
    rows = ", ".join(str(row) for row in index[:_ROWS_SHOWN].tolist())
    more = f" and {index.numel() - _ROWS_SHOWN} more" if index.numel() > _ROWS_SHOWN else ""
    return f", on training rows {rows}{more}"
