"""TLLM: class-wise knowledge distillation. The public names can be imported from here.

The names are imported on first use, so that the command line can print its help without importing torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from tllm_plugin.version import __version__

if TYPE_CHECKING:
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
        PosteriorDetector,
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
    from tllm_plugin.hosts.own_loop.session import Session
    from tllm_plugin.methods import KD, Vanilla

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
    "PosteriorDetector",
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

_HOMES = {
    **dict.fromkeys(("KD", "Vanilla"), "methods"),
    "Session": "hosts.own_loop.session",
}
_MODULES = ("curves", "detectors", "errors", "holdout", "predictions", "scores", "wrapper")


def __getattr__(name: str) -> Any:
    if name in __all__:
        for module in [_HOMES[name]] if name in _HOMES else [f"core.{module}" for module in _MODULES]:
            found = getattr(import_module(f"tllm_plugin.{module}"), name, None)
            if found is not None:
                globals()[name] = found
                return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
