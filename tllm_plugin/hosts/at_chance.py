"""One line that a person notices where a network has learned nothing."""

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
    "trained": "check labels, learning rate and losses before its classes are compared with anything",
}


def tell_if_at_chance(role: str, name: str, predictions: Predictions, images: str) -> bool:
    """Warn if the predictions of a network cannot be told from chance; return whether they cannot.

    Args:
        role: "teacher" for one that was loaded, "trained" for what a run has trained.
        name: Of the network or its run.
        predictions: Of the network; for no samples, nothing is said.
        images: What they are for: "test images", "hold-out images".
    """
    if not len(predictions.labels):
        return False
    found = against_chance(predictions.labels, predictions.prediction)
    at_chance = found.p_value > LEVEL
    if at_chance and processes.is_main():
        logger.warning(
            "AT CHANCE LEVEL: %s gets %d of %d %s right, and chance alone %.1f (p = %.2g): %s",
            name,
            found.correct,
            found.count,
            images,
            found.expected,
            found.p_value,
            _REMEDY[role],
        )
    return at_chance
