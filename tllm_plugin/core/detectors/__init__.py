"""Detectors of undistillable classes, by name; importing this package registers ours."""

from tllm_plugin.core.detectors.base import (
    DETECTORS,
    Detector,
    Evidence,
    create_detector,
    detector_options,
    options_for,
)
from tllm_plugin.core.detectors.imitation import ImitationDetector
from tllm_plugin.core.detectors.reference import PosteriorDetector, ReferenceDetector
from tllm_plugin.core.detectors.scheduled import (
    AfterDetector,
    AllDetector,
    FixedDetector,
    NoneDetector,
)
from tllm_plugin.core.detectors.teaching_curve import TeachingCurveDetector

__all__ = [
    "DETECTORS",
    "AfterDetector",
    "AllDetector",
    "Detector",
    "Evidence",
    "FixedDetector",
    "ImitationDetector",
    "NoneDetector",
    "PosteriorDetector",
    "ReferenceDetector",
    "TeachingCurveDetector",
    "create_detector",
    "detector_options",
    "options_for",
]
