"""Policies set the teaching weights of all classes before training, from the teacher alone; controls are included.

The strength of a class is the mean probability, at the distiller's temperature, that the teacher assigns to the class
on training images of that class. Students learn to under-predict classes whose softened targets are flat.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.registry import Registry

#: Lower bound of a policy's weights: at 0 a class would count as undistillable and lose the teacher altogether.
LEAST_WEIGHT = 1e-3


@dataclass(frozen=True)
class PolicyOptions:
    """Options of the policies.

    Args:
        level: Target strength of `equal_strength`: "mean" or "max" over classes, or a number in (0, 1).
        seed: Seed of the permutation in `permuted`.
    """

    level: str = "mean"
    seed: int = 0


Policy = Callable[[Tensor, PolicyOptions], Tensor]
#: Name -> (strengths (C,), options) -> teaching weights (C,).
POLICIES: Registry[Policy] = Registry("policy")


def strength_level(strengths: Tensor, level: str) -> float:
    """Return the strength to which weaker classes are raised.

    Args:
        strengths: (C,), NaN for a class without images.
        level: See `PolicyOptions`.

    Raises:
        ConfigError: `level` is not valid.
    """
    known = strengths[~strengths.isnan()]
    if level in ("mean", "max"):
        return float(known.mean() if level == "mean" else known.max())
    if not is_level(level):
        raise ConfigError(f"Expected `level` to be mean, max or a number in (0, 1), but got {level!r}")
    return float(level)


def is_level(level: str) -> bool:
    """Return whether `level` is "mean", "max" or a number in (0, 1)."""
    try:
        return level in ("mean", "max") or 0 < float(level) < 1
    except ValueError:
        return False


@POLICIES.register("equal_strength")
def equal_strength(strengths: Tensor, options: PolicyOptions) -> Tensor:
    """Return the weights that raise every weaker class to the level by mixing in the label.

    The mixture `w p + (1 - w) label` raises a class of strength s to `w s + 1 - w`, which equals the level m for
    `w = (1 - m) / (1 - s)`. Classes above the level keep weight 1.

    >>> equal_strength(torch.tensor([0.2, 0.4, 0.6]), PolicyOptions())
    tensor([0.7500, 1.0000, 1.0000])
    """
    level = strength_level(strengths, options.level)
    return torch.where(strengths < level, (1 - level) / (1 - strengths), 1.0).clamp(LEAST_WEIGHT, 1)


@POLICIES.register("constant")
def constant(strengths: Tensor, options: PolicyOptions) -> Tensor:
    """Return the mean weight of `equal_strength` for every class: the same amount of label for all."""
    weights = equal_strength(strengths, options)
    return weights.mean().expand(len(weights)).clone()


@POLICIES.register("permuted")
def permuted(strengths: Tensor, options: PolicyOptions) -> Tensor:
    """Return the weights of `equal_strength`, randomly permuted over the classes."""
    order = torch.randperm(len(strengths), generator=torch.Generator().manual_seed(options.seed))
    return equal_strength(strengths, options)[order]


class Decision:
    """Hold the weights that a policy chose; saved in the wrapper's checkpoint, so that the teacher runs only once.

    Args:
        policy: Name of the policy.
        num_classes: C.
        options: Options of the policy.

    Raises:
        ConfigError: The policy is unknown, or an option is invalid.
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
        """Strength to which weaker classes are raised."""
        return strength_level(self.strengths, self.options.level)

    def make(self, strengths: Tensor, temperature: float) -> None:
        """Compute the weights.

        Args:
            strengths: (C,) in [0, 1].
            temperature: Temperature at which the strengths were measured.
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
