"""Whether the distiller of a config can be built of its networks: tried out without memory and without data."""

from __future__ import annotations

import logging

import torch
from yacs.config import CfgNode

from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.embedded.distillers import distiller_dict
from tllm_plugin.models import create_model

logger = logging.getLogger(__name__)

# Of made-up data. No distiller is refused for these; for real data the run itself says what does not fit.
_CLASSES, _CHANNELS, _SIDE, _ROWS = 10, 3, 32, 4


def buildable(cfg: CfgNode) -> list[str]:
    """Return what keeps the distiller of a checked config from its first step: layers or maps that do not fit."""
    if cfg.DISTILLER.TYPE == "NONE":
        return []
    try:
        with torch.device("meta"):
            teacher, student = (
                create_model(name, num_classes=_CLASSES, in_channels=_CHANNELS)
                for name in (cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT)
            )
            distiller = distiller_dict[cfg.DISTILLER.TYPE](student, teacher, cfg)
            side = cfg.DATASET.IMAGE_SIZE or _SIDE
            image, target = torch.zeros(_ROWS, _CHANNELS, side, side), torch.zeros(_ROWS, dtype=torch.int64)
            distiller(image=image, target=target, index=target, epoch=1)
    except TLLMError as error:
        return str(error).splitlines()
    except Exception:  # A network of the user's own that cannot be made without memory says nothing about the config.
        logger.debug("%s cannot be tried out", cfg.DISTILLER.TYPE, exc_info=True)
    return []
