"""What `train_student.py` has built, as one distiller object with the contract of the core."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.outputs import logits_of, tensors_in
from tllm_plugin.hosts.repdistiller.judge import Judge
from tllm_plugin.hosts.repdistiller.loop import EpochCall


class ListedDistiller(nn.Module):
    """RepDistiller's module list and criterion list behind `student`, `teacher` and `forward`.

    The loss is the one that the host's own epoch function computes.

    Args:
        module_list: `[student, modules of the method ..., teacher]`, as the host orders them.
        criterion_list: `[cross-entropy, KL divergence, the method's criterion]`.
        learnable: Parameters that the optimizer trains.
        temperature: Temperature of the host's divergence.
        judge: The host's `validate`, if it is known; shows whether a module of the method makes the logits.

    Raises:
        ConfigError: A parameter is in none of the lists, or `validate` judges what no module returns.
    """

    #: The script's call of the host's epoch function in this epoch.
    call: EpochCall | None = None
    #: The host's `validate`, where the student's own logits are not what it judges.
    judge: Judge | None = None
    #: Whether the method needs batches of one size; see `TLLMWrapper`.
    fixed_rows = False

    def __init__(
        self,
        module_list: nn.ModuleList,
        criterion_list: nn.ModuleList,
        learnable: Iterable[nn.Parameter],
        temperature: float = 4.0,
        judge: Judge | None = None,
    ) -> None:
        super().__init__()
        self._predictor = None if judge is None else judge.predictor(module_list)
        self.judge = None if self._predictor is None else judge
        self._temperature = temperature
        self.module_list = module_list
        self.criterion_list = criterion_list
        wanted = {id(parameter) for parameter in learnable}
        # By name, so that a copy of this module answers with its own parameters.
        self._learnable = frozenset(name for name, parameter in self.named_parameters() if id(parameter) in wanted)
        if len(self._learnable) != len(wanted):
            raise ConfigError(
                f"Expected the optimizer to train parameters of the module and criterion lists only, but "
                f"{len(wanted) - len(self._learnable)} of its {len(wanted)} are in neither"
            )

    @property
    def student(self) -> nn.Module:
        """The host's student."""
        return self.module_list[0]

    @property
    def teacher(self) -> nn.Module:
        """The host's teacher; it stays in evaluation mode."""
        return self.module_list[-1]

    @property
    def predictor(self) -> nn.Module | None:
        """The module of the method that makes the logits; None if the student does."""
        return None if self._predictor is None else self.module_list[self._predictor[0]]

    @property
    def temperature(self) -> float:
        """The temperature of the host's divergence."""
        return self._temperature

    def train(self, mode: bool = True) -> ListedDistiller:
        super().train(mode)
        self.teacher.eval()
        return self

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer trains."""
        return [parameter for name, parameter in self.named_parameters() if name in self._learnable]

    def get_extra_parameters(self) -> int:
        """Return how many trained parameters there are beside the student's."""
        own = {id(parameter) for parameter in self.student.parameters()}
        return sum(parameter.numel() for parameter in self.get_learnable_parameters() if id(parameter) not in own)

    def forward(self, image: Tensor, target: Tensor | None = None, *, epoch: int = 0, **batch: Any) -> Any:
        """Return logits and losses in training, logits in evaluation.

        Args:
            image: (n, 3, H, W).
            target: (n,) int64; needed in training.
            epoch: Not read; the host's loop is given what its script gives it.
            batch: What the host's loader yields beside them, in its order.

        Returns:
            In training `(logits (n, C), loss)`, the loss as the host weighs and adds it, of shape () or (1,). In
            evaluation logits (n, C).

        Raises:
            NoLossError: In training: the host leaves out batches like this one.
            ConfigError: In training: the host's epoch function has not been named.
        """
        if not self.training:
            return self.student(image) if self.judge is None else self.judge.logits(image)
        if self.call is None:
            raise ConfigError("Expected the host's epoch function to be named before the first batch, but it was not")
        outputs: list[Any] = []
        thread = threading.get_ident()

        def note(module: nn.Module, given: Any, output: Any) -> None:
            if threading.get_ident() == thread:  # Replicas in other threads have one hook dictionary with this one.
                outputs.append(output)

        # Called after the wrapper's own hook, which was registered earlier, with what the loop receives.
        hook = (self.predictor or self.student).register_forward_hook(note)
        try:
            loss = self.call.loss((image, target, *batch.values()), self.module_list, self.criterion_list)
        finally:
            hook.remove()
        if not outputs:
            return None, loss
        leaf = self._predictor
        return logits_of(outputs[0]) if leaf is None else list(tensors_in(outputs[0]))[leaf[1]], loss
