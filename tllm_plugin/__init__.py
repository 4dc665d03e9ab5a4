"""TLLM: class-wise knowledge distillation. The public names of the core can be imported from here."""

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
from tllm_plugin.version import __version__

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
    "NonFiniteLossError",
    "NoneDetector",
    "ReferenceDetector",
    "Predictions",
    "Split",
    "TLLMError",
    "TLLMWrapper",
    "TeachingCurveDetector",
    "__version__",
    "create_detector",
    "options_for",
    "predict",
    "split",
]
