"""What `train_student.py` has built, as one distiller object with the contract of the core."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.repdistiller.methods import feature_loss, method_of


class ListedDistiller(nn.Module):
    """RepDistiller's module list, criterion list and options behind `student`, `teacher` and `forward`.

    The loss is `gamma * CE + alpha * KL + beta * loss_kd`, in three parts under `loss_ce`, `loss_kl` and, where the
    method has one, `loss_kd`. Weights that are None, as the host leaves them, count as 0.

    Args:
        module_list: `[student, modules of the method ..., teacher]`, as the host orders them.
        criterion_list: `[cross-entropy, KL divergence, the method's criterion]`.
        options: The host's parsed options: `distill`, `gamma`, `alpha`, `beta`, and what the method reads.
        learnable: Parameters that the optimizer trains.

    Raises:
        ConfigError: The method is unknown, or the list does not hold what the method needs.
    """

    def __init__(
        self,
        module_list: nn.ModuleList,
        criterion_list: nn.ModuleList,
        options: Any,
        learnable: Iterable[nn.Parameter],
    ) -> None:
        super().__init__()
        self.method = method_of(options.distill)
        names = ("student", *self.method.modules, "teacher")
        if len(module_list) != len(names):
            raise ConfigError(
                f"Expected `module_list` for --distill {options.distill} to hold {', '.join(names)}, but got "
                f"{len(module_list)} modules"
            )
        self.module_list = module_list
        self.criterion_list = criterion_list
        self.options = options
        self._place = {name: place for place, name in enumerate(names)}
        wanted = {id(parameter) for parameter in learnable}
        # By name, so that a copy of this module answers with its own parameters.
        self._learnable = frozenset(name for name, parameter in self.named_parameters() if id(parameter) in wanted)
        if len(self._learnable) != len(wanted):
            raise ConfigError(
                f"Expected the optimizer to train parameters of the module and criterion lists only, but "
                f"{len(wanted) - len(self._learnable)} of its {len(wanted)} are in neither"
            )

    @property
    def loss_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every loss that `forward` returns in training."""
        shapes: dict[str, tuple[int, ...]] = {"loss_ce": (), "loss_kl": ()}
        return shapes if self.method.features is None else {**shapes, "loss_kd": self.method.shape}

    @property
    def student(self) -> nn.Module:
        """The host's student."""
        return self.part("student")

    @property
    def teacher(self) -> nn.Module:
        """The host's teacher; it stays in evaluation mode."""
        return self.part("teacher")

    @property
    def temperature(self) -> float:
        """The temperature of the host's divergence."""
        return float(self.options.kd_T)

    def part(self, name: str) -> nn.Module:
        """Return a module by the name that the method's table gives it."""
        return self.module_list[self._place[name]]

    def train(self, mode: bool = True) -> ListedDistiller:
        super().train(mode)
        for name in ("teacher", *self.method.frozen):
            self.part(name).eval()
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer trains."""
        return [parameter for name, parameter in self.named_parameters() if name in self._learnable]

    def get_extra_parameters(self) -> int:
        """Return how many trained parameters there are beside the student's."""
        own = {id(parameter) for parameter in self.student.parameters()}
        return sum(parameter.numel() for parameter in self.get_learnable_parameters() if id(parameter) not in own)

    def forward(self, image: Tensor, target: Tensor | None = None, **batch: Any) -> Any:
        """Return logits and losses in training, logits in evaluation.

        Args:
            image: (n, 3, H, W).
            target: (n,) int64; needed in training.
            batch: `index` (n,) and `contrastive_index` (n, K + 1) for crd; others are ignored.

        Returns:
            In training `(logits (n, C), {name: loss})`; the losses are weighted, of shape () or, for similarity and
            crd, (1,). In evaluation logits (n, C).
        """
        if not self.training:
            return self.student(image)
        student_features, logits = self.student(image, is_feat=True, preact=self.method.preact)
        with torch.no_grad():
            teacher_features, teacher_logits = self.teacher(image, is_feat=True, preact=self.method.preact)
            teacher_features = [feature.detach() for feature in teacher_features]
        cross_entropy, divergence, criterion = self.criterion_list
        losses = {
            "loss_ce": _weight(self.options.gamma) * cross_entropy(logits, target),
            "loss_kl": _weight(self.options.alpha) * divergence(logits, teacher_logits),
        }
        distance = feature_loss(
            self.method,
            criterion,
            student_features,
            teacher_features,
            modules=self.part,
            options=self.options,
            batch=batch,
        )
        if distance is not None:
            losses["loss_kd"] = _weight(self.options.beta) * distance
        return logits, losses


def _weight(option: float | None) -> float:
    return 0.0 if option is None else option
