"""The contract of a distiller, as in mdistiller."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from tllm_plugin.core.options import WithOptions
from tllm_plugin.core.outputs import logits_of
from tllm_plugin.core.registry import Registry

Losses = dict[str, Tensor]


#: Methods that every host offers, by name; see `Distiller`. What a host offers alone is in its own registry.
METHODS: Registry[type[Any]] = Registry("method")


class Distiller(WithOptions, nn.Module):
    """Student, frozen teacher, and losses between them.

    A subclass implements `losses` and declares options in its body. In training `forward(image=, target=, ...)` returns
    `(logits, losses)`, in evaluation `forward(image=)` returns logits. The logits that the student returns are those
    that predict; a method that predicts by other means gives the student a module around it that does so
    (`ContextStudent` is an example), so that evaluation, checkpoints and TLLM need not know. A method with a
    `begin_epoch(epoch)` is told of an epoch by the embedded host's loop before its first step; where several processes
    train, a module can name buffers that are sums over the rows it has seen in `row_sums`, to be added up over
    processes after each epoch, and return parameters that are not to be trained yet from `held_parameters()`, to be
    left without a gradient.

    A class that is registered in `METHODS` gets its arguments by name: its options from the config, and those of
    `num_classes`, `student_dim`, `teacher_dim`, `student_channels`, `student_map` and `teacher_head` (see `SRRL`) that
    its constructor names.

    Args:
        student: `image -> (logits, features)`, a dictionary with `feats`, `preact_feats` and `pooled_feat`, of which a
            method reads what it needs.
        teacher: The same; kept in evaluation mode and without gradients.
        options: Values of the declared options.

    Raises:
        ConfigError: An option is unknown or out of range.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, **options: Any) -> None:
        super().__init__()
        self.set_options(options)
        self.student = student
        self.teacher = teacher.requires_grad_(False)

    def train(self, mode: bool = True) -> Distiller:
        super().train(mode)
        self.teacher.eval()
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Return the parameters to train; a method with further modules adds their parameters."""
        return list(self.student.parameters())

    def get_undecayed_parameters(self) -> list[nn.Parameter]:
        """Return the learnable parameters without weight decay; by default none."""
        return []

    def get_extra_parameters(self) -> int:
        """Return the number of learnable parameters beyond the student's."""
        extra = sum(parameter.numel() for parameter in self.get_learnable_parameters())
        return extra - sum(parameter.numel() for parameter in self.student.parameters())

    def losses(self, image: Tensor, target: Tensor, **batch: Any) -> tuple[Tensor, Losses]:
        """Return logits (n, C) and 0-dim losses; `batch` holds further keywords of the loop (`epoch`, `index`)."""
        raise NotImplementedError

    def forward(self, **batch: Any) -> Any:
        return self.losses(**batch) if self.training else logits_of(self.student(batch["image"]))
