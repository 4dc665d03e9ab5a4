"""Scores of predictions on the hold-out: one value in [0, 1] per sample."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import Predictions
from tllm_plugin.core.registry import Registry

Score = Callable[[Predictions], Tensor]
SCORES: Registry[Score] = Registry("score")


@SCORES.register("accuracy")
def accuracy(samples: Predictions) -> Tensor:
    """Return 1 for each correct prediction and 0 otherwise, (n,) float32."""
    return samples.correct.float()


@SCORES.register("reciprocal_rank")
def reciprocal_rank(samples: Predictions) -> Tensor:
    """Return 1 / rank of the true class, (n,) float32; independent of confidence like accuracy, but finer."""
    return samples.kept("rank").float().reciprocal()


@SCORES.register("true_prob")
def true_prob(samples: Predictions) -> Tensor:
    """Return the probability of the true class, (n,) float32; label smoothing and temperature lower it everywhere."""
    return samples.kept("true_prob")


@SCORES.register("agreement")
def agreement(samples: Predictions) -> Tensor:
    """Return 1 where student and teacher predict the same class and 0 elsewhere, (n,) float32.

    Raises:
        ConfigError: The predictions were made without a teacher.
    """
    if samples.agree is None:
        raise ConfigError("Expected a teacher for the score `agreement`, but got a distiller without one")
    return samples.agree.float()
