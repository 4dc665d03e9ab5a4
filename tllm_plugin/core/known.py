"""What calls of an inner distiller have shown, for batches in which it cannot be asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from tllm_plugin.core.contract import ONE_LOSS, named_losses


@dataclass
class Known:
    """Mutable on purpose: replicas copy attributes shallowly, so that they share it with the original module.

    Args:
        loss_shapes: Name -> shape.
        one_loss: Whether the distiller returns one tensor instead of a dictionary.
        call: Which call of the student returns the logits, counted from 0.
        leaf: Which tensor of its output they are; None: not seen yet.
        image: Keyword that the student is given as it is; None: something is made of it first, or not seen yet.
        columns: Of the logits; None: not seen yet.
        checked: Whether a call was checked in this process.
        few_rows_steps: Steps whose distillable rows got plain cross-entropy because they were few.
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
        """Return what a distiller says of itself, by an attribute `loss_shapes`."""
        shapes: Any = getattr(distiller, "loss_shapes", {})
        if isinstance(shapes, Mapping):
            return cls({name: tuple(shape) for name, shape in shapes.items()})
        return cls({ONE_LOSS: tuple(shapes)}, one_loss=True)

    def remember(self, losses: Tensor | Mapping[str, Tensor]) -> None:
        """Take note of what losses are called and shaped."""
        self.one_loss = isinstance(losses, Tensor)
        self.loss_shapes.update({name: tuple(loss.shape) for name, loss in named_losses(losses).items()})

    def loss_shapes_or_guess(self, *, has_teacher: bool) -> dict[str, tuple[int, ...]]:
        """Return name -> shape of the losses; before any was seen, those that mdistiller's methods have."""
        return self.loss_shapes or ({"loss_ce": (), "loss_kd": ()} if has_teacher else {"ce": ()})

    def state_dict(self) -> dict[str, Any]:
        """Return plain Python values."""
        return {
            "counters": {"few_rows_steps": self.few_rows_steps},
            "loss_shapes": {name: list(shape) for name, shape in self.loss_shapes.items()},
            "one_loss": self.one_loss,
            "logits_at": [self.call, self.leaf, self.image],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned, also that of an earlier version."""
        self.few_rows_steps = state["counters"]["few_rows_steps"]
        self.loss_shapes.update({name: tuple(shape) for name, shape in state["loss_shapes"].items()})
        if "logits_at" in state:
            self.one_loss = state["one_loss"]
            self.call, self.leaf, self.image = state["logits_at"]
