"""Runs that differ only in their detector are one run until the first flag: that part is trained once.

A run whose detector is `none` has recorded everything that any detector would have seen before its first flag. `fork`
lets such a detector watch the recorded curves, and starts the new run from the checkpoint of the epoch after which it
flags something. What follows is what the run would have been alone, bit for bit on a CPU.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import Detector
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.trainer import changed_keys, read_state, recorded_config
from tllm_plugin.hosts.tllm_node import build_detector
from tllm_plugin.runs.atomic import save_torch, write_bytes, write_text
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.reading import load_torch
from tllm_plugin.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)

# What has no effect before the first flag.
_FREE = ("TLLM.DETECTOR.", "TLLM.LABEL_SMOOTHING", "TLLM.CE_WEIGHT", "TLLM.MIN_ROWS")


def run_sharing(base: RunFolder, cfg: CfgNode, bundle: DataBundle | None = None) -> RunFolder:
    """Train what `cfg` describes, from where it parts from `base`; a run that is there already is used or continued.

    Raises:
        ConfigError: The two runs differ in more than their detector.
    """
    if not (job.log_folder(cfg) / "latest").exists():
        fork(base, cfg)
    return job.ensure_trained(cfg, bundle or job.load_bundle(cfg))


def fork(base: RunFolder, cfg: CfgNode) -> int:
    """Write the checkpoint from which the run of `cfg` is to be resumed.

    Of the shared epochs the new run has curves, flags and checkpoints, but no TensorBoard events.

    Args:
        base: A finished run of the embedded host under the detector `none`, with `LOG.SAVE_CHECKPOINT_FREQ` 1 for the
            most to be shared.
        cfg: Checked and frozen.

    Returns:
        How many epochs need not be trained. With 0 nothing was written.

    Raises:
        ConfigError: The two runs differ in more than their detector.
    """
    cfg, _ = job.named_reference(cfg)
    curves = Curves.from_state(to_state(base.read_curves()))
    names = tuple(item.name for item in base.read_flags().classes)
    parting = _first_flag(_detector(cfg, names, curves), curves)
    checkpoint = _checkpoint(base, cfg, parting)
    if checkpoint is None:
        return 0
    state: dict[str, Any] = dict(read_state(checkpoint))
    old = recorded_config(state)
    differing = [key for key in changed_keys(old, CfgNode.load_cfg(cfg.dump())) if not key.startswith(_FREE)]
    if differing or old.TLLM.DETECTOR.TYPE != "none":
        raise ConfigError(
            f"Expected {base.log_folder} to be the same run under the detector `none`, but it was under "
            f"`{old.TLLM.DETECTOR.TYPE}` and these keys differ: {', '.join(differing) or 'none'}"
        )
    carried = state["model"]["_extra_state"]["carried"]
    recorded = carried["curves"]["epochs"].tolist()
    detector = _detector(cfg, names, curves)
    for epoch in recorded:
        detector.update(epoch, curves.samples_at(epoch))
    carried["detector"] = detector.state_dict()
    state["config"] = cfg.dump()
    run = RunFolder.inside(job.log_folder(cfg)).create()
    _copy_best(base, run, curves, recorded)
    _copy_worklog(base, run, int(state["epoch"]))
    # The student first: whoever finds `latest` finds its student as well.
    student = base.log_folder / f"student_{checkpoint.name.removeprefix('epoch_')}"
    write_bytes(run.log_folder / "student_latest", student.read_bytes())
    save_torch(run.log_folder / "latest", state)
    logger.info("%s shares %d epochs with %s", run.log_folder, state["epoch"], base.log_folder)
    return int(state["epoch"])


def _detector(cfg: CfgNode, names: tuple[str, ...], curves: Curves) -> Detector:
    return build_detector(
        cfg.TLLM,
        class_names=names,
        total_epochs=cfg.SOLVER.EPOCHS,
        holdout=curves,
        has_teacher=cfg.DISTILLER.TYPE != "NONE",
    )


def _first_flag(detector: Detector, curves: Curves) -> int:
    """Return the epoch after which something is flagged (0: before training), or the last one recorded."""
    if detector.flags.any():
        return 0
    for epoch in curves.epochs:
        if detector.update(epoch, curves.samples_at(epoch)).any():
            return epoch
    return curves.epochs[-1] if curves.epochs else 0


def _checkpoint(base: RunFolder, cfg: CfgNode, epoch: int) -> Path | None:
    """Return the last checkpoint of `base` that is not later than `epoch`."""
    if base.read_metrics().epochs_done <= epoch:
        return base.log_folder / "latest"
    kept = (base.log_folder / f"epoch_{number}" for number in range(epoch, 0, -1))
    return next((path for path in kept if path.exists()), None)


def _copy_best(base: RunFolder, run: RunFolder, curves: Curves, recorded: list[int]) -> None:
    """Leave behind the student that was best on the hold-out in the shared epochs, as the run alone would have."""
    if not recorded or not curves.labels.numel():
        return
    means = curves.class_curves()[: len(recorded)].nanmean(1)
    place = int(means.argmax())
    weights = base.log_folder / f"student_{recorded[place]}"
    if weights.exists():
        student: Any = load_torch(weights, "a student's checkpoint")
        content = {"model": student["model"], "epoch": recorded[place], "holdout_accuracy": float(means[place])}
        save_torch(run.student_best_holdout, content)


def _copy_worklog(base: RunFolder, run: RunFolder, epochs: int) -> None:
    log = base.log_folder / "worklog.txt"
    if log.exists():
        shared, _, _ = log.read_text(encoding="utf-8").partition(f"epoch: {epochs + 1}\n")
        write_text(run.log_folder / "worklog.txt", shared)
