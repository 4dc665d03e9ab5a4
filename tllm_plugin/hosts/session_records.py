"""Records of the decisions of a run's detector and policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict

from torch import Tensor
from yacs.config import CfgNode

from tllm_plugin.core.detectors import Detector
from tllm_plugin.core.policies import Decision
from tllm_plugin.runs.flags_file import ClassFlag, DetectorChoice, FlagsRecord
from tllm_plugin.runs.policy_file import ClassWeight, PolicyRecord


def policy_record(decision: Decision, class_names: Sequence[str]) -> PolicyRecord:
    """Return the record for `policy.json` of a completed decision."""
    columns = zip(class_names, decision.strengths.tolist(), decision.weights.tolist(), strict=True)
    return PolicyRecord(
        policy=decision.policy,
        options=asdict(decision.options),
        temperature=decision.temperature,
        level=decision.level,
        num_classes=len(class_names),
        classes=tuple(ClassWeight(name, strength, weight) for name, strength, weight in columns),
    )


def flags_record(detector: Detector, node: CfgNode, class_names: Sequence[str], epochs: int) -> FlagsRecord:
    """Return the record for `flags.json` of a detector after `epochs` epochs."""

    def known(values: Tensor) -> list[float | None]:
        return [None if value != value else value for value in values.tolist()]

    columns = zip(
        class_names,
        detector.flags.tolist(),
        detector.epoch_flagged.tolist(),
        known(detector.evidence.drop),
        known(detector.evidence.p_value),
        known(detector.evidence.e_value),
        detector.holdout_count.tolist(),
        detector.holdout_correct.tolist(),
        known(detector.evidence.harm),
        strict=True,
    )
    classes = tuple(
        ClassFlag(index, name, flagged, epoch if flagged else None, drop, p_value, e_value, count, correct, harm)
        for index, (name, flagged, epoch, drop, p_value, e_value, count, correct, harm) in enumerate(columns)
    )
    options = {key: value for key, value in node.DETECTOR.items() if key != "TYPE"}
    return FlagsRecord(
        detector=DetectorChoice(node.DETECTOR.TYPE, options),
        epochs=epochs,
        num_classes=len(class_names),
        reason="" if bool(detector.flags.any()) else detector.reason(),
        classes=classes,
    )
