"""The config node `TLLM`, which is the same in all hosts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.detectors import DETECTORS, Detector, create_detector, detector_options, options_for
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.policies import POLICIES, Decision, PolicyOptions
from tllm_plugin.hosts.class_lists import list_problems, resolve_classes
from tllm_plugin.hosts.options import WITHDRAWAL, arguments, as_node, check_options, table
from tllm_plugin.hosts.same_data import check_same_data
from tllm_plugin.hosts.switch import is_on
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder, find_curves


def tllm_node() -> CfgNode:
    """Return the node with its defaults."""
    return as_node(table()).TLLM


def check_tllm(cfg: CfgNode) -> list[str]:
    """Return all problems of `cfg.TLLM`, one sentence each, without reading data or training."""
    problems = check_options(cfg, {key: option for key, option in table().items() if key.startswith("TLLM.")})
    if cfg.TLLM.VIEWS and cfg.TLLM.SPEED == "off" and "RUNTIME" not in cfg:
        problems.append(
            f"Expected `TLLM.SPEED` exact or auto with `TLLM.VIEWS` {cfg.TLLM.VIEWS}, because the host's own loader "
            "draws all outcomes of the augmentation, but got off"
        )
    detector = cfg.TLLM.DETECTOR
    if detector.TYPE == "fixed" and not detector.CLASSES:
        problems.append("Expected `TLLM.DETECTOR.CLASSES` to name classes for the detector `fixed`, but got none")
    problems += list_problems("TLLM.DETECTOR.CLASSES", detector.CLASSES)
    needed = detector.TYPE in DETECTORS and DETECTORS[detector.TYPE].needs_reference
    if needed and detector.SCORE == "agreement":
        problems.append(
            f"Expected `TLLM.DETECTOR.SCORE` to be one that a vanilla run has, too, for `{detector.TYPE}`, but got "
            "'agreement', and that has no teacher to agree with"
        )
    problems += _without_teacher(cfg)
    if needed and detector.REFERENCE and not os.path.exists(detector.REFERENCE):
        problems.append(
            f"Expected `TLLM.DETECTOR.REFERENCE` to be a run folder or curves.npz, but {detector.REFERENCE} does not "
            "exist"
        )
    return problems


def _without_teacher(cfg: CfgNode) -> list[str]:
    """Return the problems of a vanilla run's config: settings that require a teacher."""
    if "DISTILLER" not in cfg or cfg.DISTILLER.TYPE != "NONE" or not is_on(cfg):
        return []
    if cfg.TLLM.POLICY in POLICIES:
        return [f"Expected a teacher for `TLLM.POLICY` {cfg.TLLM.POLICY}, but `DISTILLER.TYPE` is NONE"]
    detector = cfg.TLLM.DETECTOR
    kind = DETECTORS.get(detector.TYPE)
    if kind is not None and kind.needs_teacher:
        return [f"Expected a teacher for `TLLM.DETECTOR.TYPE` {detector.TYPE}, but `DISTILLER.TYPE` is NONE"]
    if detector.SCORE == "agreement" and kind is not None and not kind.needs_reference:
        return ["Expected a teacher for `TLLM.DETECTOR.SCORE` agreement, but `DISTILLER.TYPE` is NONE"]
    return []


def build_detector(
    node: CfgNode,
    *,
    class_names: tuple[str, ...],
    total_epochs: int,
    holdout: Curves,
    has_teacher: bool,
    data: DataIdentity | None = None,
) -> Detector:
    """Create the detector of a `TLLM` node.

    Args:
        node: Config node `cfg.TLLM`.
        class_names: (C,) names.
        total_epochs: Number of epochs of the run.
        holdout: Still empty curves of the run; a reference must have the same samples.
        has_teacher: Whether the score `agreement` is available.
        data: Training data of the run; None if they were compared with the reference's data before.

    Raises:
        ConfigError: The detector cannot be created with these options.
    """
    kind, known = DETECTORS[node.DETECTOR.TYPE], detector_options(node.DETECTOR.TYPE)
    # Options of all detectors, because a detector without declared options may name options of others in its
    # constructor.
    every = [option for other in (*DETECTORS.values(), kind) for option in other.options]
    options: dict[str, Any] = {"total_epochs": total_epochs, **arguments(every, node.DETECTOR)}
    if kind.needs_teacher and not has_teacher:
        raise ConfigError(
            f"Expected a teacher for `TLLM.DETECTOR.TYPE` {node.DETECTOR.TYPE}, but the distiller has none"
        )
    if node.DETECTOR.SCORE == "agreement" and not has_teacher:
        raise ConfigError("Expected a teacher for `TLLM.DETECTOR.SCORE` agreement, but the distiller has none")
    if kind.needs_reference:
        options["reference"] = read_reference(node.DETECTOR.REFERENCE, holdout, data)
    if "classes" in known:
        options["classes"] = resolve_classes("TLLM.DETECTOR.CLASSES", node.DETECTOR.CLASSES, class_names, files=True)
    return create_detector(node.DETECTOR.TYPE, len(class_names), **options_for(node.DETECTOR.TYPE, options))


def build_decision(node: CfgNode, num_classes: int, *, has_teacher: bool) -> Decision | None:
    """Return the policy decision of a `TLLM` node; None without a policy.

    Raises:
        ConfigError: The distiller has no teacher.
    """
    if node.POLICY in ("", WITHDRAWAL):
        return None
    if not has_teacher:
        raise ConfigError(f"Expected a teacher for `TLLM.POLICY` {node.POLICY}, but the distiller has none")
    return Decision(node.POLICY, num_classes, PolicyOptions(node.POLICY_OPTIONS.LEVEL, node.POLICY_OPTIONS.SEED))


def read_reference(path: str, holdout: Curves, data: DataIdentity | None = None) -> Curves:
    """Read the curves of a vanilla run and check that they were recorded on the same hold-out.

    Args:
        path: Run folder or file of curves.
        holdout: Curves of the run that will be compared with it.
        data: See `build_detector`.

    Raises:
        ConfigError: No reference is named, or it was recorded on other samples or trained on other data.
        FileFormatError: The file cannot be read.
    """
    if not path:
        raise ConfigError(
            "Expected `TLLM.DETECTOR.REFERENCE` to name the run folder of a vanilla student, but got none; train one "
            "with DISTILLER.TYPE NONE and the same TLLM.HOLDOUT"
        )
    reference = Curves.from_state(to_state(find_curves(path)))
    if not reference.same_holdout(holdout):
        raise ConfigError(
            f"Expected `TLLM.DETECTOR.REFERENCE` ({path}) to be recorded on the same hold-out, but its samples differ: "
            "use the same data set and TLLM.HOLDOUT"
        )
    if data is not None:
        loose = path.endswith(".npz")
        recorded = (RunFolder(Path(path).parent) if loose else RunFolder.find(path)).read_data()
        if recorded != DataIdentity() or not loose:
            check_same_data(
                f"`TLLM.DETECTOR.REFERENCE` ({path})", recorded, data, "train it again on the data of this run"
            )
    return reference
