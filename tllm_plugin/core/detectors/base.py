"""What every detector is: scores of an epoch in, monotone flags with their evidence out."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.arguments import as_flags, whole_number
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.options import WithOptions
from tllm_plugin.core.predictions import Predictions, class_sums
from tllm_plugin.core.registry import Registry


@dataclass(frozen=True)
class Evidence:
    """What a detector knows about every class at one epoch; NaN where a rule has no such quantity.

    Args:
        drop: (C,) float64, how far the class is behind, as a fraction of the score.
        p_value: (C,) float64, exact paired one-sided McNemar p-value at this epoch (not corrected for looking often).
        e_value: (C,) float64, evidence gathered so far; valid however often one looks.
    """

    drop: Tensor
    p_value: Tensor
    e_value: Tensor

    @classmethod
    def none(cls, num_classes: int) -> Evidence:
        """Return evidence that says nothing."""
        return cls(*(torch.full((num_classes,), torch.nan, dtype=torch.float64) for _ in range(3)))


class Detector(WithOptions, ABC):
    """Decides, epoch by epoch, which classes are undistillable. Flags are never taken back.

    A subclass implements `judge`, declares options in its body, lists the tensors it needs from one epoch to the next
    in `memory`, and is registered by name. Its constructor may also ask for what the run knows: `total_epochs`; the
    `reference` run's curves, with `needs_reference`; the indices of the `classes` that the user lists.

    Args:
        num_classes: C.
        options: Values of the declared options.

    Raises:
        ConfigError: An option is unknown or out of range.
    """

    #: Whether flagged rows get the configured label smoothing; ESKD stops teaching and smooths nothing.
    smooths_labels = True
    #: Whether the detector compares with the recorded curves of a vanilla run.
    needs_reference = False
    #: Whether the detector looks at agreement with the teacher.
    needs_teacher = False

    def __init__(self, num_classes: int, **options: Any) -> None:
        self.set_options(options)
        self.num_classes = whole_number("num_classes", num_classes, 1)
        self.flags = torch.zeros(num_classes, dtype=torch.bool)
        #: (C,) int64, the epoch after which a class was flagged; 0 = before training, -1 = not flagged.
        self.epoch_flagged = torch.full((num_classes,), -1, dtype=torch.int64)
        #: The evidence at the epoch of the flag, or at the last epoch for a class that is not flagged.
        self.evidence = Evidence.none(num_classes)
        #: (C,) int64, hold-out samples of the class and how many were right, at the same epoch as the evidence.
        self.holdout_count = torch.zeros(num_classes, dtype=torch.int64)
        self.holdout_correct = torch.zeros(num_classes, dtype=torch.int64)
        #: What a subclass must remember between epochs.
        self.memory: dict[str, Tensor] = {}

    @abstractmethod
    def judge(self, epoch: int, samples: Predictions) -> tuple[Tensor, Evidence]:
        """Return the classes to flag after `epoch`, (C,) bool, and the evidence about every class."""

    def reason(self) -> str:
        """Say in one sentence why a class that is not flagged is not."""
        return "no class met the rule"

    def update(self, epoch: int, samples: Predictions) -> Tensor:
        """Judge all classes after an epoch.

        Args:
            epoch: Counted from 1.
            samples: The student's scores on the hold-out after this epoch.

        Returns:
            (C,) bool, every class flagged so far.

        Raises:
            ConfigError: The scores are of other classes, or the rule gives anything but one truth value per class.
        """
        epoch = whole_number("epoch", epoch, 1)
        if samples.labels.numel() and not 0 <= int(samples.labels.max()) < self.num_classes:
            raise ConfigError(
                f"Expected scores of {self.num_classes} classes, but got a label {int(samples.labels.max())}"
            )
        judged, evidence = self.judge(epoch, samples)
        judged = as_flags("judge", judged, self.num_classes)
        # A class that was flagged before training has no epoch of its flag to remember.
        open_classes = ~self.flags | (self.epoch_flagged == 0)
        self.evidence = Evidence(
            *(
                torch.where(open_classes, now, then)
                for now, then in (
                    (evidence.drop, self.evidence.drop),
                    (evidence.p_value, self.evidence.p_value),
                    (evidence.e_value, self.evidence.e_value),
                )
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
        """Return tensors only, so that a checkpoint loads under `weights_only=True`."""
        return {
            "flags": self.flags,
            "epoch_flagged": self.epoch_flagged,
            "drop": self.evidence.drop,
            "p_value": self.evidence.p_value,
            "e_value": self.evidence.e_value,
            "holdout_count": self.holdout_count,
            "holdout_correct": self.holdout_correct,
            "memory": dict(self.memory),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what `state_dict` returned.

        Raises:
            ConfigError: It belongs to another number of classes.
        """
        if state["flags"].shape != self.flags.shape:
            raise ConfigError(
                f"Expected detector state for {self.num_classes} classes, but got {state['flags'].numel()}"
            )
        self.flags, self.epoch_flagged = (
            state["flags"].clone(),
            state["epoch_flagged"].clone(),
        )
        self.evidence = Evidence(state["drop"], state["p_value"], state["e_value"])
        self.holdout_count, self.holdout_correct = (
            state["holdout_count"],
            state["holdout_correct"],
        )
        self.memory = dict(state["memory"])


DETECTORS: Registry[type[Detector]] = Registry("detector")


_OPEN = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)


def detector_options(name: str) -> tuple[str, ...]:
    """Return the names of all that a registered detector is made with besides `num_classes`, sorted.

    >>> detector_options("after")
    ('after_fraction', 'total_epochs')
    """
    return tuple(sorted({*_parameters(name), *(option.name for option in DETECTORS[name].options)}))


def options_for(name: str, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of several detectors' options that one of them takes; all of them, if it takes any.

    >>> options_for("after", {"total_epochs": 10, "eta": 0.05})
    {'total_epochs': 10}
    """
    known = detector_options(name)
    return {option: value for option, value in options.items() if option in known or _takes_any(name)}


def create_detector(name: str, num_classes: int, **options: Any) -> Detector:
    """Make a registered detector.

    Args:
        name: A registered name.
        num_classes: C.
        options: See `detector_options`. `options_for` picks a detector's from those of several.

    Raises:
        ConfigError: Unknown name, an option that the detector does not take, lacks, or that is out of range.
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
