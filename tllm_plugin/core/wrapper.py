"""Wrap a distiller so that the rows of undistillable classes are trained without the teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tllm_plugin.core import contract
from tllm_plugin.core.arguments import as_flags, as_weights, number_in, whole_number
from tllm_plugin.core.balance import Balance
from tllm_plugin.core.batch_losses import add_to, cross_entropy_name, cross_entropy_per_row, of_whole_batch, zero_losses
from tllm_plugin.core.carried import Carried, HasState
from tllm_plugin.core.contract import ONE_LOSS, Losses, named_losses
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.inner import InnerDistiller
from tllm_plugin.core.mixing import RowWeights, check_temperature, temperature_of

STATE_VERSION = 1


class TLLMWrapper(InnerDistiller):
    """Replace the teacher by label-smoothed cross-entropy on the rows of undistillable classes.

    Every class has a teaching weight: 1 leaves the teacher as it is, 0 marks the class as undistillable (flagged).
    While all weights are 1, every call is passed to the inner distiller unchanged. Once a class is flagged, consider a
    batch of `n` rows of which `n_d` are distillable. The student runs once on all rows; the teacher and the inner
    losses see only the `n_d` distillable rows, and these losses are scaled by `n_d / n`. The remaining rows add
    `ce_weight * CE(label_smoothing)`, scaled by `(n - n_d) / n`, to the distiller's cross-entropy: `loss_ce`, `ce`, or
    another loss with such a name, otherwise the first. With `balance`, `ce_weight` is relative to the measured weight
    of the inner losses. A loss with one value per row, which the trainer reduces, stays one: the distillable rows keep
    their values, and the others are 0, or their own cross-entropy.

    For a class of weight 0 < w < 1, the teacher's output is changed before the inner losses see it: its logits become
    the logits of the mixture of its prediction (weight w) and the label (weight 1 - w) at the distiller's temperature.
    Gradients through the student's features are multiplied by w row by row, which is exact for losses that are sums or
    means over rows.

    Args:
        distiller: The inner distiller. It has `student`, `teacher` (unless it trains a vanilla student) and, in
            training mode, `forward(image=, target=, ...) -> (logits (n, C), losses)`. Losses are means over the rows
            that it receives, or have one value per row, in a dictionary or as one tensor. All other attributes are
            optional. The remaining requirements are checked at the first call, see `Raises` of `forward`. An optional
            attribute `loss_shapes` (name -> shape of each loss, or one shape for one tensor; -1 for the rows) announces
            the losses before the first call. An optional attribute `predictor` is the module, other than the student,
            that makes the logits from the student's output; it receives all rows. With an optional attribute
            `fixed_rows` that is true, the distiller receives as many rows as the batch has: the distillable rows, some
            of them repeatedly.
        num_classes: C.
        label_smoothing: Smoothing of the undistillable rows' cross-entropy, in [0, 1).
        ce_weight: Weight of the undistillable rows' cross-entropy, >= 0.
        balance: Multiply `ce_weight` by the measured weight of the inner losses (see `Balance`), unless every class is
            flagged.
        min_rows: If a batch has at least one but fewer than `min_rows` distillable rows, they are trained with plain
            cross-entropy in this step: relational losses need several rows, and BatchNorm inside a distiller fails on
            a single row.
        temperature: Temperature at which the teacher's predictions and labels are mixed. By default it is read in
            every step from the distiller's attribute `temperature` (or `T`, `kd_T`, `tau`), or is 1 without one.

    Raises:
        ConfigError: An argument is out of range.

    Source: "Teach Less, Learn More" (NeurIPS 2022), appendix F.2: the teacher is discarded on undistillable classes
        and replaced by label smoothing of 0.1.
    """

    teaching_weights: Tensor

    def __init__(
        self,
        distiller: nn.Module,
        num_classes: int,
        *,
        label_smoothing: float = 0.1,
        ce_weight: float = 1.0,
        balance: bool = False,
        min_rows: int = 4,
        temperature: float | None = None,
    ) -> None:
        num_classes = whole_number("num_classes", num_classes, 1)
        label_smoothing = number_in("label_smoothing", label_smoothing, 0, 1, open_high=True)
        ce_weight = number_in("ce_weight", ce_weight, 0, float("inf"), open_high=True)
        min_rows = whole_number("min_rows", min_rows, 1)
        super().__init__(distiller, num_classes)
        self.label_smoothing = label_smoothing
        self.ce_weight = ce_weight
        self.balance = Balance(label_smoothing) if balance else None
        self.min_rows = min_rows
        self._temperature = check_temperature(temperature)
        self.register_buffer("teaching_weights", torch.ones(num_classes))
        self._note_weights()
        self._carried = Carried()
        if self.balance is not None:
            self.carry("balance", self.balance)

    @property
    def undistillable(self) -> Tensor:
        """(C,) bool, True for the classes whose teaching weight is 0."""
        return self.teaching_weights == 0

    @property
    def mixing_temperature(self) -> float:
        """Temperature at which teacher and label are mixed for teaching weights between 0 and 1."""
        return temperature_of(self.distiller) if self._temperature is None else self._temperature

    def set_undistillable(self, flags: Tensor | Sequence[bool]) -> None:
        """Set the teaching weights of flagged classes to 0, and all others to 1.

        Args:
            flags: (C,) bool tensor, array or list; True where a class is undistillable.

        Raises:
            ConfigError: The flags have the wrong length or type, for example class indices.
        """
        self.set_teaching_weights((~as_flags("flags", flags, self.num_classes)).float())

    def set_teaching_weights(self, weights: Tensor | Sequence[float]) -> None:
        """Replace the teaching weights.

        Args:
            weights: (C,) floats in [0, 1]; 1 leaves the teacher as it is, 0 marks the class as undistillable.

        Raises:
            ConfigError: The weights have the wrong length or type, one is NaN or outside [0, 1], or one is between 0
                and 1 although the distiller has no teacher.
        """
        values = as_weights("weights", weights, self.num_classes)
        between = ((values > 0) & (values < 1)).nonzero().squeeze(1)
        if self.teacher is None and len(between):
            raise ConfigError(
                f"Expected `weights` to be 0 or 1 for a distiller without a teacher, but got "
                f"{float(values[between[0]]):g} in place {int(between[0])}"
            )
        self.teaching_weights.copy_(values)
        self._note_weights()

    def _note_weights(self) -> None:
        """Cache which kinds of weights exist, so that no step has to synchronise with the device."""
        weights = self.teaching_weights
        self._any_flagged, self._all_flagged = bool((weights == 0).any()), bool((weights == 0).all())
        self._any_between = bool(((weights > 0) & (weights < 1)).any())

    def carry(self, name: str, holder: HasState) -> None:
        """Save and load the state of `holder` with this module's checkpoint, under `name`.

        If a checkpoint with state under `name` was loaded earlier, `holder` receives that state now.
        """
        self._carried.add(name, holder)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the inner distiller's result, with the logits of the full batch in order.

        Args:
            image: (n, ...); several views are passed in keywords that begin with `image`.
            target: (n,) int64 class indices, required in training. The name may also be `label` or similar; if no
                keyword begins with `image`, the views may have any names. Batched tensors in other keywords are sliced
                to the distillable rows.

        Returns:
            In training `(logits (n, C), losses)`, with losses as the distiller returns them: `{name: loss}`, or one
            tensor. In evaluation the result of the inner distiller, unchanged.

        Raises:
            ConfigError: At the first call in training. The call or its result does not match the description above;
                the student is not called, or is called with other rows; the logits are not an output of the student;
                or the distiller combines tensors that would have different rows in a batch with a flagged class. These
                checks compute nothing twice.
        """
        if args:
            kwargs = contract.by_name(self.distiller, args, kwargs)
        if not self.training:
            return self.distiller(**kwargs)
        self._spelled = contract.other_names(kwargs)
        if self._spelled:
            ours = {theirs: name for name, theirs in self._spelled.items()}
            kwargs = {ours.get(name, name): value for name, value in kwargs.items()}
        contract.refuse_soft_labels(kwargs.get("target"))
        if not self._known.checked:
            contract.check_call(self.distiller, kwargs, self.num_classes, self._spelled)
        if not (self._any_flagged or self._any_between):
            return self._call(kwargs) if self._known.checked else self._inner(kwargs)[0]
        if "target" not in kwargs:
            raise ConfigError(f"Expected a training call to give `target`, but got {', '.join(kwargs) or 'nothing'}")
        if not self._any_flagged:
            return self._inner(kwargs, None, self._row_weights(kwargs))[0]
        target = kwargs["target"].long()
        # Unlike indexing, `index_select` rejects negative labels.
        flagged = self.teaching_weights.index_select(0, target) == 0
        rows = (~flagged).nonzero().squeeze(1)
        if rows.numel() == target.shape[0]:
            return self._all_rows(kwargs, rows)
        if rows.numel() < self.min_rows:
            logits, losses = self._without_teacher(kwargs, flagged, distillable_rows=rows.numel())
        else:
            logits, losses = self._mixed(kwargs, flagged, rows)
        return logits, losses[ONE_LOSS] if self._known.one_loss else losses

    def _row_weights(self, kwargs: Mapping[str, Any], rows: Tensor | None = None) -> RowWeights | None:
        """Return the teaching weights of `rows`, or None if no class has a weight between 0 and 1."""
        if not self._any_between:
            return None
        target = kwargs["target"].long()
        target = target if rows is None else target.index_select(0, rows)
        weights = self.teaching_weights.index_select(0, target)
        known = self._known
        return RowWeights(weights, target, self.num_classes, self.mixing_temperature, known.leaf, known.columns)

    def _all_rows(self, kwargs: dict[str, Any], rows: Tensor) -> tuple[Tensor, Any]:
        (logits, losses), route = self._inner(kwargs, None, self._row_weights(kwargs))
        if self.balance is not None:
            self.balance.update(named_losses(losses), route.full_logits(logits), rows, kwargs["target"].long())
        return logits, losses

    def _mixed(self, kwargs: dict[str, Any], flagged: Tensor, rows: Tensor) -> tuple[Tensor, Losses]:
        target = kwargs["target"].long()
        batch_rows, taught = target.shape[0], rows
        if getattr(self.distiller, "fixed_rows", False):
            taught = rows.repeat(-(-batch_rows // len(rows)))[:batch_rows]
        (returned, inner_losses), route = self._inner(kwargs, taught, self._row_weights(kwargs, taught))
        self._known.remember(inner_losses, taught.numel())
        inner_losses = named_losses(inner_losses)
        logits = route.full_logits(returned)
        losses = of_whole_batch(inner_losses, rows, batch_rows, self._known)
        weight: Tensor | float = self.ce_weight
        if self.balance is not None:
            weight = weight * self.balance.update(inner_losses, logits, rows, target)
        smoothed = cross_entropy_per_row(logits, target, self.label_smoothing) * flagged
        name = cross_entropy_name(losses)
        term = weight * (smoothed if self._known.is_per_row(name) else smoothed.sum() / batch_rows)
        return logits.to(returned.dtype), add_to(losses, name, term)

    def _without_teacher(
        self, kwargs: dict[str, Any], flagged: Tensor, *, distillable_rows: int
    ) -> tuple[Tensor, Losses]:
        target = kwargs["target"].long()
        logits = self._student_logits(kwargs)
        weight: Tensor | float = self.ce_weight
        if self.balance is not None and not self._all_flagged:
            weight = weight * self.balance.skip(logits)
        per_row = weight * cross_entropy_per_row(logits, target, self.label_smoothing)
        if distillable_rows:
            self._known.few_rows_steps += 1
            per_row = torch.where(flagged, per_row, cross_entropy_per_row(logits, target, 0.0))
        shapes = self._known.loss_shapes_or_guess(has_teacher=self.teacher is not None)
        losses = zero_losses(logits, shapes, self.get_learnable_parameters())
        name = cross_entropy_name(losses)
        return logits, add_to(losses, name, per_row if self._known.is_per_row(name) else per_row.mean())

    def get_extra_state(self) -> dict[str, Any]:
        return {"version": STATE_VERSION, **self._known.state_dict(), "carried": self._carried.state_dict()}

    def set_extra_state(self, state: Mapping[str, Any]) -> None:
        if state.get("version") != STATE_VERSION:
            raise ConfigError(
                f"Expected the checkpoint's TLLM state to be of version {STATE_VERSION}, but got "
                f"{state.get('version')!r}"
            )
        self._known.load_state_dict(state)
        self._carried.load_state_dict(state["carried"])

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        flags = state_dict.pop(f"{prefix}undistillable", None)
        if flags is not None:  # Checkpoint of an earlier version.
            state_dict[f"{prefix}teaching_weights"] = (~flags).float()
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        self._note_weights()
