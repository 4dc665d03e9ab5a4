"""Warn if the accuracy of a network is at chance level."""

from __future__ import annotations

import logging

from tllm_plugin.core.chance import against_chance
from tllm_plugin.core.predictions import Predictions
from tllm_plugin.hosts import processes

logger = logging.getLogger(__name__)

#: Share of networks that know nothing which pass for better than chance.
LEVEL = 0.05

_REMEDY = {
    "teacher": "check that its checkpoint, its class order and its normalisation belong to these data",
    "trained": "check labels, learning rate and losses before comparing its classes",
}


def tell_if_at_chance(role: str, name: str, predictions: Predictions, images: str) -> bool:
    """Return whether predictions are not significantly better than chance, and warn if so.

    Args:
        role: "teacher" for a loaded teacher, "trained" for the network that a run has trained.
        name: Name of the network or its run.
        predictions: Predictions of the network; without samples the result is False.
        images: Kind of images: "test images" or "hold-out images".
    """
    if not len(predictions.labels):
        return False
    found = against_chance(predictions.labels, predictions.prediction)
    at_chance = found.p_value > LEVEL
    if at_chance and processes.is_main():
        logger.warning(
            "AT CHANCE LEVEL: %s predicts %d of %d %s correctly, %.1f are expected by chance (p = %.2g): %s",
            name,
            found.correct,
            found.count,
            images,
            found.expected,
            found.p_value,
            _REMEDY[role],
        )
    return at_chance
