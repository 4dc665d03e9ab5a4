"""The wrapper: any distiller, with the teacher taken away from the rows of undistillable classes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tllm_plugin.core.balance import Balance
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.routing import Route, attach_hooks, logits_of, routed, slice_rows

STATE_VERSION = 1
NEW_KEY = "loss_tllm"


class HasState(Protocol):
    """Something whose state travels in the wrapper's checkpoint: tensors and plain Python values only."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> Any: ...


class TLLMWrapper(nn.Module):
    """Stands in for a distiller; undistillable rows get label-smoothed cross-entropy instead of the teacher.

    Until a class is flagged every call goes to the inner distiller untouched. From then on, in a batch of `n` rows of
    which `n_d` are distillable, the student runs once on all rows, the teacher and the inner losses see the `n_d` rows
    only and are scaled by `n_d / n`; the others add `ce_weight * CE(label_smoothing)` times their share to `loss_ce`
    (or `ce`, or a new key `loss_tllm`). With `balance`, `ce_weight` counts in units of what the inner losses weigh.

    Args:
        distiller: The inner distiller, with the contract of mdistiller: attributes `student` and (unless it is a
            vanilla one) `teacher`, `get_learnable_parameters()`; called in training as `distiller(image=, target=,
            ...) -> (logits (n, C), {name: loss})`, in evaluation as `distiller(image=) -> logits`. What its student
            returns, or the first tensor in that, are the logits that predict: on them undistillable rows are trained,
            and they are what is returned. A method that predicts by other means than its network's own head puts these
            into its student (`tllm_plugin.methods.ContextStudent`). Where the distiller has an attribute `loss_shapes`,
            name -> shape of each loss, these are known before its first call.
        num_classes: C.
        label_smoothing: Smoothing of the undistillable rows' cross-entropy, in [0, 1).
        ce_weight: Weight of that cross-entropy, >= 0.
        balance: Multiply `ce_weight` by what the inner losses weigh (`Balance`), unless every class is flagged.
        min_rows: With fewer distillable rows than this (but some), these get plain cross-entropy for the step:
            relations need several rows, and BatchNorm inside a distiller fails on one.

    Raises:
        ConfigError: An argument is out of range.

    Source: "Teach Less, Learn More" (NeurIPS 2022), appendix F.2: the teacher is discarded on undistillable classes,
        label smoothing 0.1 takes its place.
    """

    undistillable: Tensor

    def __init__(
        self,
        distiller: nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.1,
        ce_weight: float = 1.0,
        balance: bool = False,
        min_rows: int = 4,
    ) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"Expected `num_classes` to be at least 1, but got {num_classes}")
        if not 0.0 <= label_smoothing < 1.0:
            raise ConfigError(f"Expected `label_smoothing` to be in [0, 1), but got {label_smoothing}")
        if not 0.0 <= ce_weight < float("inf"):
            raise ConfigError(f"Expected `ce_weight` to be a number >= 0, but got {ce_weight}")
        if min_rows < 1:
            raise ConfigError(f"Expected `min_rows` to be at least 1, but got {min_rows}")
        self.distiller = distiller
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.ce_weight = ce_weight
        self.balance = Balance(label_smoothing) if balance else None
        self.min_rows = min_rows
        self.register_buffer("undistillable", torch.zeros(num_classes, dtype=torch.bool))
        self._any_flagged = self._all_flagged = False
        # Mutable on purpose: replicas copy attributes shallowly, so these are shared with the original module.
        self._counters = {"few_rows_steps": 0}
        self._loss_shapes: dict[str, tuple[int, ...]] = dict(getattr(distiller, "loss_shapes", {}))
        self._carried: dict[str, HasState] = {}
        self._waiting_state: dict[str, Mapping[str, Any]] = {}
        self._owner = object()
        if self.balance is not None:
            self.carry("balance", self.balance)
        attach_hooks(self._owner, self.student, self.teacher)

    @property
    def student(self) -> nn.Module:
        """The inner distiller's student (registered there only, so that a checkpoint holds it once)."""
        return self.distiller.student  # type: ignore[return-value]

    @property
    def teacher(self) -> nn.Module | None:
        """The inner distiller's teacher, or None where it has none."""
        return getattr(self.distiller, "teacher", None)

    @property
    def few_rows_steps(self) -> int:
        """How many steps gave their distillable rows plain cross-entropy because they were fewer than `min_rows`.

        Of several processes, those of this one.
        """
        return self._counters["few_rows_steps"]

    def __getattr__(self, name: str) -> Any:
        # Trainers of hosts and forks reach for attributes of the distiller that only the inner one has.
        try:
            return super().__getattr__(name)
        except AttributeError:
            inner = self.__dict__.get("_modules", {}).get("distiller")
            if inner is None or not hasattr(inner, name):
                raise
            return getattr(inner, name)

    def get_learnable_parameters(self) -> list[nn.Parameter]:
        """Return what the optimizer trains: the inner distiller's choice."""
        return list(self.distiller.get_learnable_parameters())  # type: ignore[operator]

    def get_extra_parameters(self) -> int:
        """Return the number of parameters that the inner distiller adds to the student."""
        inner = getattr(self.distiller, "get_extra_parameters", None)
        return int(inner()) if inner is not None else 0

    def set_undistillable(self, flags: Tensor) -> None:
        """Replace the flags.

        Args:
            flags: (C,) bool, True where a class is undistillable.

        Raises:
            ValueError: Wrong shape or dtype.
        """
        if flags.shape != (self.num_classes,) or flags.dtype != torch.bool:
            raise ValueError(
                f"Expected `flags` to be a bool tensor of shape ({self.num_classes},), but got {flags.dtype} of shape "
                f"{tuple(flags.shape)}"
            )
        self.undistillable.copy_(flags)
        self._any_flagged, self._all_flagged = bool(flags.any()), bool(flags.all())

    def carry(self, name: str, holder: HasState) -> None:
        """Let the state of `holder` travel in this module's checkpoint under `name`.

        State that was loaded before `holder` was known is handed to it now.
        """
        self._carried[name] = holder
        if name in self._waiting_state:
            holder.load_state_dict(self._waiting_state.pop(name))

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the inner distiller's result, with the full batch's logits in order.

        Args:
            target: Keyword, (n,) int64 class indices; needed in training. Batched tensors in the other keywords are
                sliced to the distillable rows, except those whose name begins with `image`.

        Returns:
            In training `(logits (n, C), {name: loss})`, in evaluation whatever the inner distiller returns.

        Raises:
            TypeError: `target` is missing in training although a class is flagged.
        """
        if not (self.training and self._any_flagged):
            return self._inner(*args, **kwargs)
        if args or "target" not in kwargs:
            raise TypeError("Expected keyword arguments with `target` among them, but got " + ", ".join(kwargs))
        target = kwargs["target"]
        flagged = self.undistillable[target]
        rows = (~flagged).nonzero().squeeze(1)
        if rows.numel() == target.shape[0]:
            logits, losses = self._inner(**kwargs)
            if self.balance is not None:
                self.balance.update(losses, logits, rows, target)
            # DataParallel gathers the replicas' losses by name: a new key must not depend on a replica's rows.
            return logits, losses if _ce_name(losses) in losses else {
                **losses,
                NEW_KEY: logits.new_zeros(()),
            }
        if rows.numel() < self.min_rows:
            return self._without_teacher(kwargs, flagged, distillable_rows=rows.numel())
        return self._mixed(kwargs, flagged, rows)

    def _inner(self, *args: Any, **kwargs: Any) -> Any:
        result = self.distiller(*args, **kwargs)
        if self.training and not self._loss_shapes:
            self._remember(result[1])
        return result

    def _remember(self, losses: Mapping[str, Tensor]) -> None:
        self._loss_shapes.update({name: tuple(loss.shape) for name, loss in losses.items()})

    def _mixed(self, kwargs: dict[str, Any], flagged: Tensor, rows: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        target = kwargs["target"]
        batch_rows = target.shape[0]
        inner_kwargs = {
            # The student needs every image; the teacher's hook slices them for the teacher.
            name: value if name.startswith("image") else slice_rows(value, rows, batch_rows)
            for name, value in kwargs.items()
        }
        with routed(Route(self._owner, rows, batch_rows)) as route:
            returned, inner_losses = self.distiller(**inner_kwargs)
        self._remember(inner_losses)
        logits = route.full_logits(returned)
        share = rows.numel() / batch_rows
        losses = {name: loss * share for name, loss in inner_losses.items()}
        weight: Tensor | float = self.ce_weight
        if self.balance is not None:
            weight = weight * self.balance.update(inner_losses, logits, rows, target)
        smoothed = self._cross_entropy(logits, target, self.label_smoothing)
        return logits, _add_to_ce(losses, weight * (smoothed * flagged).sum() / batch_rows)

    def _without_teacher(
        self, kwargs: dict[str, Any], flagged: Tensor, *, distillable_rows: int
    ) -> tuple[Tensor, dict[str, Tensor]]:
        target = kwargs["target"]
        image = kwargs.get("image", next((v for k, v in kwargs.items() if k.startswith("image")), None))
        logits = logits_of(self.student(image))
        weight: Tensor | float = self.ce_weight
        if self.balance is not None and not self._all_flagged:
            weight = weight * self.balance.skip(logits)
        per_row = weight * self._cross_entropy(logits, target, self.label_smoothing)
        if distillable_rows:
            self._counters["few_rows_steps"] += 1
            per_row = torch.where(flagged, per_row, self._cross_entropy(logits, target, 0.0))
        return logits, _add_to_ce(self._zero_losses(logits), per_row.mean())

    @staticmethod
    def _cross_entropy(logits: Tensor, target: Tensor, label_smoothing: float) -> Tensor:
        return F.cross_entropy(logits, target, label_smoothing=label_smoothing, reduction="none")

    def _zero_losses(self, logits: Tensor) -> dict[str, Tensor]:
        """Return zeros under the inner distiller's loss names, each touching every learnable parameter.

        Some trainers call `backward` on single losses, and DDP waits for the gradient of every parameter.
        """
        shapes: dict[str, tuple[int, ...]] = self._loss_shapes
        if not shapes:
            shapes = {"loss_ce": (), "loss_kd": ()} if self.teacher is not None else {"ce": ()}
        zero = logits.new_zeros(())
        for parameter in self.get_learnable_parameters():
            zero = zero + parameter.sum() * 0
        return {name: zero.reshape((1,) * len(shape)).expand(shape) for name, shape in shapes.items()}

    def get_extra_state(self) -> dict[str, Any]:
        return {
            "version": STATE_VERSION,
            "counters": dict(self._counters),
            "loss_shapes": {name: list(shape) for name, shape in self._loss_shapes.items()},
            "carried": {name: holder.state_dict() for name, holder in self._carried.items()},
        }

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        if state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"Expected the checkpoint's TLLM state to be of version {STATE_VERSION}, but got "
                f"{state.get('version')!r}"
            )
        self._counters.update(state["counters"])
        self._loss_shapes.update({name: tuple(shape) for name, shape in state["loss_shapes"].items()})
        for name, carried in state["carried"].items():
            if name in self._carried:
                self._carried[name].load_state_dict(carried)
            else:
                self._waiting_state[name] = carried

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._any_flagged = bool(self.undistillable.any())
        self._all_flagged = bool(self.undistillable.all())


def _ce_name(losses: Mapping[str, Tensor]) -> str:
    return next((name for name in ("loss_ce", "ce") if name in losses), NEW_KEY)


def _add_to_ce(losses: dict[str, Tensor], term: Tensor) -> dict[str, Tensor]:
    name = _ce_name(losses)
    losses[name] = losses[name] + term if name in losses else term
    return losses
