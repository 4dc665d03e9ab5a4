"""What a student's predictions on the hold-out are scored by: values in [0, 1] per sample."""

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
    """Return (n,) float32: 1 where the prediction is right."""
    return samples.correct.float()


@SCORES.register("reciprocal_rank")
def reciprocal_rank(samples: Predictions) -> Tensor:
    """Return (n,) float32: 1 / rank of the true class; like accuracy free of confidence, but finer."""
    return samples.kept("rank").float().reciprocal()


@SCORES.register("true_prob")
def true_prob(samples: Predictions) -> Tensor:
    """Return (n,) float32: probability of the true class. Label smoothing and temperature lower it for all classes."""
    return samples.kept("true_prob")


@SCORES.register("agreement")
def agreement(samples: Predictions) -> Tensor:
    """Return (n,) float32: 1 where student and teacher predict the same class.

    Raises:
        ConfigError: There is no teacher.
    """
    if samples.agree is None:
        raise ConfigError("Expected a teacher for the score `agreement`, but got a distiller without one")
    return samples.agree.float()
