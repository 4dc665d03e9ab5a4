"""Base class of detectors: they map the predictions of an epoch to monotone flags with evidence."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.arguments import as_flags, whole_number
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import WithOptions
from tllm_plugin.core.predictions import Predictions, class_sums
from tllm_plugin.core.registry import Registry


@dataclass(frozen=True)
class Evidence:
    """Evidence about every class at one epoch; NaN for quantities that a detector does not compute.

    Args:
        drop: (C,) float64, how far the class is behind, in units of the score.
        p_value: (C,) float64, exact paired one-sided McNemar p-value at this epoch, not corrected for repeated looks.
        e_value: (C,) float64, evidence accumulated so far; valid under any number of looks.
        harm: (C,) float64, posterior probability that the class is behind at this epoch (see `core.posterior`).
    """

    drop: Tensor
    p_value: Tensor
    e_value: Tensor
    harm: Tensor

    def quantities(self) -> list[Tensor]:
        """Return the values of all fields, in their order."""
        return [getattr(self, field.name) for field in fields(self)]

    @classmethod
    def none(cls, num_classes: int) -> Evidence:
        """Return evidence in which every quantity is NaN."""
        return cls(*(torch.full((num_classes,), torch.nan, dtype=torch.float64) for _ in fields(cls)))


class Detector(WithOptions, ABC):
    """Decide after each epoch which classes are undistillable; flags are never withdrawn.

    A subclass implements `judge`, declares its options in the class body, keeps tensors that must survive from one
    epoch to the next in `memory`, and is registered by name. Its constructor may also take these arguments, which the
    run supplies: `total_epochs`; `reference`, the curves of the reference run (with `needs_reference`); `classes`, the
    class indices that the user lists.

    Args:
        num_classes: C.
        options: Values of the declared options.

    Raises:
        ConfigError: An option is unknown or out of range.
    """

    #: Whether flagged rows get the configured label smoothing; early-stopped KD uses none.
    smooths_labels = True
    #: Whether the detector compares with the recorded curves of a vanilla run.
    needs_reference = False
    #: Curves of that vanilla run, for plots; None without one.
    reference: Curves | None = None
    #: Whether the detector uses agreement with the teacher.
    needs_teacher = False

    def __init__(self, num_classes: int, **options: Any) -> None:
        self.set_options(options)
        self.num_classes = whole_number("num_classes", num_classes, 1)
        self.flags = torch.zeros(num_classes, dtype=torch.bool)
        #: (C,) int64, epoch after which a class was flagged; 0 = before training, -1 = not flagged.
        self.epoch_flagged = torch.full((num_classes,), -1, dtype=torch.int64)
        #: Evidence at the epoch at which a class was flagged; for unflagged classes, at the last epoch.
        self.evidence = Evidence.none(num_classes)
        #: (C,) int64, hold-out samples per class and how many were correct, at the same epoch as the evidence.
        self.holdout_count = torch.zeros(num_classes, dtype=torch.int64)
        self.holdout_correct = torch.zeros(num_classes, dtype=torch.int64)
        #: Tensors that a subclass keeps between epochs; saved in checkpoints.
        self.memory: dict[str, Tensor] = {}

    @abstractmethod
    def judge(self, epoch: int, samples: Predictions) -> tuple[Tensor, Evidence]:
        """Return the classes to flag after `epoch`, (C,) bool, and the evidence for every class."""

    def reason(self) -> str:
        """Return a short reason why the unflagged classes are not flagged."""
        return "no class met the rule"

    def update(self, epoch: int, samples: Predictions) -> Tensor:
        """Judge all classes after an epoch.

        Args:
            epoch: Epoch, counted from 1.
            samples: The student's predictions on the hold-out after this epoch.

        Returns:
            (C,) bool, True for every class flagged so far.

        Raises:
            ConfigError: A label is out of range, or `judge` does not return one truth value per class.
        """
        epoch = whole_number("epoch", epoch, 1)
        if samples.labels.numel() and not 0 <= int(samples.labels.max()) < self.num_classes:
            raise ConfigError(
                f"Expected scores of {self.num_classes} classes, but got a label {int(samples.labels.max())}"
            )
        judged, evidence = self.judge(epoch, samples)
        judged = as_flags("judge", judged, self.num_classes)
        # A class that was flagged before training keeps no evidence of an earlier epoch.
        open_classes = ~self.flags | (self.epoch_flagged == 0)
        self.evidence = Evidence(
            *(
                torch.where(open_classes, now, then)
                for now, then in zip(evidence.quantities(), self.evidence.quantities(), strict=True)
            )
        )
        correct = class_sums(samples.correct, samples.labels, self.num_classes).long()
        self.holdout_correct = torch.where(open_classes, correct, self.holdout_correct)
        self.holdout_count = torch.bincount(samples.labels, minlength=self.num_classes)
        self._flag(judged, epoch)
        return self.flags.clone()

    def _flag(self, classes: Tensor, epoch: int) -> None:
        self.epoch_flagged[classes & ~self.flags] = epoch
        self.flags = self.flags | classes

    def state_dict(self) -> dict[str, Any]:
        """Return the state as tensors only, so that a checkpoint loads with `weights_only=True`."""
        return {
            "flags": self.flags,
            "epoch_flagged": self.epoch_flagged,
            **{field.name: getattr(self.evidence, field.name) for field in fields(Evidence)},
            "holdout_count": self.holdout_count,
            "holdout_correct": self.holdout_correct,
            "memory": dict(self.memory),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the result of `state_dict`.

        Raises:
            ConfigError: The state belongs to another number of classes.
        """
        if state["flags"].shape != self.flags.shape:
            raise ConfigError(
                f"Expected detector state for {self.num_classes} classes, but got {state['flags'].numel()}"
            )
        self.flags, self.epoch_flagged = (
            state["flags"].clone(),
            state["epoch_flagged"].clone(),
        )
        unknown = torch.full_like(state["drop"], torch.nan)  # A quantity that an earlier version did not compute.
        self.evidence = Evidence(*(state.get(field.name, unknown) for field in fields(Evidence)))
        self.holdout_count, self.holdout_correct = (
            state["holdout_count"],
            state["holdout_correct"],
        )
        self.memory = dict(state["memory"])


DETECTORS: Registry[type[Detector]] = Registry("detector")


_OPEN = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def detector_options(name: str) -> tuple[str, ...]:
    """Return the sorted names of all arguments of a registered detector except `num_classes`.

    >>> detector_options("after")
    ('after_fraction', 'total_epochs')
    """
    return tuple(sorted({*_parameters(name), *(option.name for option in DETECTORS[name].options)}))


def options_for(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Select the options that a detector takes; all of them if it takes arbitrary keywords.

    >>> options_for("after", {"total_epochs": 10, "eta": 0.05})
    {'total_epochs': 10}
    """
    known = detector_options(name)
    return {option: value for option, value in options.items() if option in known or _takes_any(name)}


def create_detector(name: str, num_classes: int, **options: Any) -> Detector:
    """Create a registered detector.

    Args:
        name: Name of a registered detector.
        num_classes: C.
        options: Arguments listed by `detector_options`; `options_for` selects them from a larger set.

    Raises:
        ConfigError: The name or an option is unknown, a required option is missing, or a value is out of range.
    """
    known, parameters = detector_options(name), _parameters(name)
    unknown = [option for option in options if option not in known]
    if unknown and not _takes_any(name):
        raise ConfigError(
            f"Expected options of the detector `{name}` to be among {', '.join(known) or 'none'}, but got "
            f"{', '.join(unknown)}"
        )
    missing = [
        option
        for option, parameter in sorted(parameters.items())
        if option not in options and parameter.default is inspect.Parameter.empty
    ]
    if missing:
        raise ConfigError(f"Expected the detector `{name}` to be given {', '.join(missing)}")
    return DETECTORS[name](num_classes, **options)


def _parameters(name: str) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(DETECTORS[name]).parameters
    return {key: item for key, item in parameters.items() if key != "num_classes" and item.kind not in _OPEN}


def _takes_any(name: str) -> bool:
    kind = DETECTORS[name]
    if kind.options or kind.__init__ is Detector.__init__:
        return False
    return any(item.kind is inspect.Parameter.VAR_KEYWORD for item in inspect.signature(kind).parameters.values())
