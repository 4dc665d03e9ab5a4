"""Stop a run with a loss that is not finite, naming the step, the rows and the part of the loss."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from tllm_plugin.core.errors import NonFiniteLossError

_ROWS_SHOWN = 8


class LossGuard:
    """Collects the losses of every step and checks them every few steps, because a check synchronises the device.

    Call `flush` before writing a checkpoint, so that every written checkpoint is valid.

    Args:
        check_every: Number of steps between checks, at least 1.
        rate: Name of the learning rate in the host, for the message.
    """

    def __init__(self, check_every: int, rate: str = "SOLVER.LR") -> None:
        self.check_every = check_every
        self.rate = rate
        self.step = 0
        self._seen: list[tuple[int, int, tuple[str, ...], Tensor, Tensor | None]] = []

    def see(self, epoch: int, names: Iterable[str], values: Tensor, index: Tensor | None) -> None:
        """Record the losses of one step.

        Args:
            epoch: Epoch, counted from 1.
            names: Names of the losses.
            values: (k,) means of the losses.
            index: (n,) int64, indices of the batch in the training data; None if the host does not provide them.

        Raises:
            NonFiniteLossError: A loss since the last check is NaN or infinite.
        """
        self.step += 1
        self._seen.append((epoch, self.step, tuple(names), values.detach(), index))
        if len(self._seen) >= self.check_every:
            self.flush()

    def flush(self) -> None:
        """Check the losses recorded since the last check.

        Raises:
            NonFiniteLossError: See `see`.
        """
        seen, self._seen = self._seen, []
        # One synchronisation for all of them.
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
