"""Policies: teaching weights of all classes, from the teacher alone and before training, with their controls.

The strength of a class is the mean probability, at the distiller's temperature, that the teacher gives the class on
training images of that class. Students learn to predict classes less often whose softened targets are flat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.registry import Registry

#: No class is taught less than this: at 0 it would be undistillable, and lose the teacher altogether.
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class PolicyOptions:
    """What policies are told.

    Args:
        level: Of `equal_strength`: "mean" or "max" of the strengths over classes, or a number in (0, 1).
        seed: Of `permuted`.
    """

    level: str = "mean"
    seed: int = 0


Policy = Callable[[Tensor, PolicyOptions], Tensor]
#: Name -> (strengths (C,), options) -> teaching weights (C,).
POLICIES: Registry[Policy] = Registry("policy")


def strength_level(strengths: Tensor, level: str) -> float:
    """Return the strength that classes are raised to.

    Args:
        strengths: (C,), NaN where there is no image.
        level: See `PolicyOptions`.

    Raises:
        ConfigError: It is none of these.
    """
    known = strengths[~strengths.isnan()]
    if level in ("mean", "max"):
        return float(known.mean() if level == "mean" else known.max())
    if not is_level(level):
        raise ConfigError(f"Expected `level` to be mean, max or a number in (0, 1), but got {level!r}")
    return float(level)


def is_level(level: str) -> bool:
    """Tell whether a level is one."""
    try:
        return level in ("mean", "max") or 0 < float(level) < 1
    except ValueError:
        return False


@POLICIES.register("equal_strength")
def equal_strength(strengths: Tensor, options: PolicyOptions) -> Tensor:
    """Return the weights that raise every class below the level to it, by as much label as that takes.

    With the mixture `w p + (1 - w) label`, a class of strength s has the strength `w s + 1 - w`, which is the level m
    for `w = (1 - m) / (1 - s)`. Classes above the level keep the teacher as it is.

    >>> equal_strength(torch.tensor([0.2, 0.4, 0.6]), PolicyOptions())
    tensor([0.7500, 1.0000, 1.0000])
    """
    level = strength_level(strengths, options.level)
    return torch.where(strengths < level, (1 - level) / (1 - strengths), 1.0).clamp(LEAST_WEIGHT, 1)


@POLICIES.register("constant")
def constant(strengths: Tensor, options: PolicyOptions) -> Tensor:
    """Return the mean weight of `equal_strength` for every class: as much label, whatever the class."""
    weights = equal_strength(strengths, options)
    return weights.mean().expand(len(weights)).clone()


@POLICIES.register("permuted")
def permuted(strengths: Tensor, options: PolicyOptions) -> Tensor:
    """Return the weights of `equal_strength`, dealt out to the classes at random."""
    order = torch.randperm(len(strengths), generator=torch.Generator().manual_seed(options.seed))
    return equal_strength(strengths, options)[order]


class Decision:
    """What a policy came to; its state travels in the wrapper's checkpoint, so that the teacher is asked once.

    Args:
        policy: Name of the policy.
        num_classes: C.
        options: Its options.

    Raises:
        ConfigError: There is no such policy, or an option is none.
    """

    def __init__(self, policy: str, num_classes: int, options: PolicyOptions) -> None:
        if not is_level(options.level):
            strength_level(torch.zeros(1), options.level)
        self.policy = policy
        self.options = options
        self._rule = POLICIES[policy]
        self.is_made = False
        #: (C,) float32; ones until the decision is made.
        self.weights = torch.ones(num_classes)
        #: (C,) float64.
        self.strengths = torch.full((num_classes,), torch.nan, dtype=torch.float64)
        self.temperature = torch.nan

    @property
    def level(self) -> float:
        """The strength that classes are raised to."""
        return strength_level(self.strengths, self.options.level)

    def make(self, strengths: Tensor, temperature: float) -> None:
        """Set the weights.

        Args:
            strengths: (C,) in [0, 1].
            temperature: At which they were measured.
        """
        self.strengths, self.temperature = strengths.double(), temperature
        self.weights = self._rule(self.strengths, self.options).float()
        self.is_made = True

    def state_dict(self) -> dict[str, Any]:
        names = ("is_made", "weights", "strengths", "temperature")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value.cpu() if isinstance(value, Tensor) else value)
