"""Record facts from earlier calls of an inner distiller, for batches in which it cannot be called."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tllm_plugin.core.contract import ONE_LOSS, named_losses

#: In a loss's shape: one value per row of the batch.
ROWS = -1


@dataclass
class Known:
    """Facts known about an inner distiller; mutable, so that DataParallel replicas share it with the original module.

    Args:
        loss_shapes: Name -> shape of each loss, with `ROWS` in place of the number of rows.
        one_loss: Whether the distiller returns one tensor instead of a dictionary.
        call: Index (from 0) of the student call that returns the logits.
        leaf: Index of the logits among the tensors of that output; None before the first call.
        image: Keyword that the student receives unchanged; None if the distiller changes it first, or before the first
            call.
        columns: Number of columns of the logits; None before the first call.
        checked: Whether a call was checked in this process.
        few_rows_steps: Number of steps with fewer than `min_rows` distillable rows, which got plain cross-entropy.
    """

    loss_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    one_loss: bool = False
    call: int = 0
    leaf: int | None = None
    image: str | None = None
    columns: int | None = None
    checked: bool = False
    few_rows_steps: int = 0

    @classmethod
    def told_by(cls, distiller: nn.Module) -> Known:
        """Return the facts that a distiller announces by its attribute `loss_shapes`."""
        shapes: Any = getattr(distiller, "loss_shapes", {})
        if isinstance(shapes, Mapping):
            return cls({name: tuple(shape) for name, shape in shapes.items()})
        return cls({ONE_LOSS: tuple(shapes)}, one_loss=True)

    def remember(self, losses: Tensor | Mapping[str, Tensor], rows: int) -> None:
        """Record names and shapes of the losses.

        Args:
            losses: Result of a call.
            rows: Number of rows that the distiller saw.
        """
        self.one_loss = isinstance(losses, Tensor)
        for name, loss in named_losses(losses).items():
            if rows > 1 and loss.dim() and len(loss) == rows:
                self.loss_shapes[name] = (ROWS, *loss.shape[1:])
            elif rows > 1 or not self.is_per_row(name):  # A single row's value looks like a mean.
                self.loss_shapes[name] = tuple(loss.shape)

    def is_per_row(self, name: str) -> bool:
        """Return whether a loss has one value per row, so that the trainer reduces it."""
        return self.loss_shapes.get(name, ())[:1] == (ROWS,)

    def loss_shapes_or_guess(self, *, has_teacher: bool) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the losses; before the first call, the names and shapes of mdistiller's methods."""
        return self.loss_shapes or ({"loss_ce": (), "loss_kd": ()} if has_teacher else {"ce": ()})

    def state_dict(self) -> dict[str, Any]:
        """Return the state as plain Python values."""
        return {
            "counters": {"few_rows_steps": self.few_rows_steps},
            "loss_shapes": {name: list(shape) for name, shape in self.loss_shapes.items()},
            "one_loss": self.one_loss,
            "logits_at": [self.call, self.leaf, self.image],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`, including states of earlier versions."""
        self.few_rows_steps = state["counters"]["few_rows_steps"]
        self.loss_shapes.update({name: tuple(shape) for name, shape in state["loss_shapes"].items()})
        if "logits_at" in state:
            self.one_loss = state["one_loss"]
            self.call, self.leaf, self.image = state["logits_at"]
