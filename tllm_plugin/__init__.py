"""TLLM: class-wise knowledge distillation. The public names of the core can be imported from here, and `Session`."""

from typing import TYPE_CHECKING, Any

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import (
    DETECTORS,
    AfterDetector,
    AllDetector,
    Detector,
    Evidence,
    FixedDetector,
    ImitationDetector,
    NoneDetector,
    ReferenceDetector,
    TeachingCurveDetector,
    create_detector,
    options_for,
)
from tllm_plugin.core.errors import ConfigError, DataError, FileFormatError, NonFiniteLossError, TLLMError
from tllm_plugin.core.holdout import Split, split
from tllm_plugin.core.predictions import Predictions, predict
from tllm_plugin.core.scores import SCORES
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.methods import KD, Vanilla
from tllm_plugin.version import __version__

if TYPE_CHECKING:
    from tllm_plugin.hosts.own_loop.session import Session

__all__ = [
    "DETECTORS",
    "SCORES",
    "AfterDetector",
    "AllDetector",
    "ConfigError",
    "Curves",
    "DataError",
    "Detector",
    "Evidence",
    "FileFormatError",
    "FixedDetector",
    "ImitationDetector",
    "KD",
    "NonFiniteLossError",
    "NoneDetector",
    "ReferenceDetector",
    "Predictions",
    "Session",
    "Split",
    "TLLMError",
    "TLLMWrapper",
    "TeachingCurveDetector",
    "Vanilla",
    "__version__",
    "create_detector",
    "options_for",
    "predict",
    "split",
]


def __getattr__(name: str) -> Any:
    # On demand: a session needs what writes run folders, and the core needs torch alone.
    if name == "Session":
        from tllm_plugin.hosts.own_loop.session import Session

        return Session
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
