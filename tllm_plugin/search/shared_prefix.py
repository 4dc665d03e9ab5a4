"""Train the common first epochs of runs that differ only in their detector once.

A finished run has recorded everything that another detector would have seen, as long as both flag the same classes
after the same epochs. `fork` replays the recorded curves with the other detector and starts its run from the checkpoint
of the epoch after which the flags diverge. The result equals the run trained alone bit for bit (on a GPU unless
`RUNTIME.DETERMINISTIC` is False). If the flags never diverge, nothing is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.prerequisites import log_folder, named_reference
from tllm_plugin.hosts.embedded.run_files import copy_until, read_state, spec_of
from tllm_plugin.hosts.results import described
from tllm_plugin.hosts.same_data import check_same_data
from tllm_plugin.hosts.session_records import flags_record
from tllm_plugin.runs.atomic import save_torch, write_link
from tllm_plugin.runs.flags_file import FlagsRecord
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.forking import Replays, check_same_but_detector, latest_fork_point, write_fork

logger = logging.getLogger(__name__)


def run_sharing(
    recorded: Sequence[RunFolder],
    cfg: CfgNode,
    bundle: DataBundle | None = None,
    *,
    watch: Callable[[Curves], None] | None = None,
    keep: recipe.Keep | None = None,
    replays: Replays | None = None,
) -> RunFolder:
    """Train the run of `cfg`, forked from a recorded run; an existing run is reused or resumed.

    Args:
        recorded: See `fork`.
        cfg: Checked and frozen config.
        bundle: Data set, if it is loaded already.
        watch: See `recipe.run`.
        keep: See `recipe.Keep`.
        replays: Replays of the search.

    Raises:
        ConfigError: Two runs differ in more than their detector and the treatment of flagged classes.
    """
    folder = log_folder(cfg)
    # If `latest` was removed, files of the run must not be replaced by files of an earlier epoch.
    if not ((folder / "latest").exists() or RunFolder.inside(folder).is_finished()):
        bundle = bundle or load_bundle(cfg)
        fork(recorded, cfg, bundle.identity, replays)
    return recipe.ensure_trained(cfg, bundle or load_bundle(cfg), watch=watch, keep=keep)


def fork(
    recorded: Sequence[RunFolder], cfg: CfgNode, data: DataIdentity | None = None, replays: Replays | None = None
) -> int:
    """Write the checkpoint from which the run of `cfg` will be resumed.

    For the shared epochs the new run has curves, flags and checkpoints, but no TensorBoard events.

    Args:
        recorded: Finished runs of the embedded host, ideally with `LOG.SAVE_CHECKPOINT_FREQ` 1. A run with the detector
            `none` can be shared until the first flag, others until the flags first differ. The first run that shares
            the most epochs is used.
        cfg: Checked and frozen config.
        data: Identity of the training data; None if it is known to be the same.
        replays: Replays of the search.

    Returns:
        Number of epochs that need not be trained; 0 if nothing was written.

    Raises:
        ConfigError: Runs differ in more than their detector and the treatment of flagged classes, or in their data.
    """
    cfg, _ = named_reference(cfg, data)
    specs = [spec_of(run) for run in recorded]
    for run, spec in zip(recorded, specs, strict=True):
        if data is not None:
            check_same_data(run.log_folder, run.read_data(), data, "set EXPERIMENT.NAME to search anew")
        check_same_but_detector(run, spec, cfg)
    point = latest_fork_point(list(zip(recorded, specs, strict=True)), cfg, replays, _has_best_student)
    if point is None:
        return 0
    parent, run = point.run, RunFolder.inside(log_folder(cfg)).create()
    state = _state_of(point.checkpoint)
    carried = state["model"]["_extra_state"]["carried"]
    scored = carried["curves"]["epochs"].tolist()
    detector = point.detector_after(scored, cfg)
    carried["detector"] = detector.state_dict()
    taught = carried["policy"]["weights"] if "policy" in carried else torch.ones(len(detector.flags))
    state["model"].pop("undistillable", None)  # The run is of an earlier version.
    state["model"]["teaching_weights"] = taught.masked_fill(detector.flags, 0.0)
    state["config"] = cfg.dump()
    student = _best_student(parent, point.epochs)
    if student.exists():
        write_link(run.student_best_holdout, student)
    copy_until(point.epochs, parent.log_folder, run.log_folder)
    if parent.policy_json.exists():
        write_link(run.policy_json, parent.policy_json)
    write_fork(run, parent, point.epochs)
    # The student is written first, so that a reader who finds `latest` also finds its student.
    weights = parent.log_folder / f"student_{point.checkpoint.name.removeprefix('epoch_')}"
    write_link(run.log_folder / "student_latest", weights)
    save_torch(run.log_folder / "latest", state)
    logger.info("%s shares %d epochs with %s", run.log_folder.name, point.epochs, parent.log_folder.name)
    names = [item.name for item in parent.read_flags().classes]
    if point.epochs == cfg.SOLVER.EPOCHS:
        for epoch in point.curves.epochs[len(scored) :]:
            detector.update(epoch, point.curves.samples_at(epoch))
        _finish(run, parent, cfg, flags_record(detector, cfg.TLLM, names, point.epochs))
        return point.epochs
    flagged = zip(names, detector.epoch_flagged.tolist(), strict=True)
    new = [name for name, epoch in flagged if epoch == point.epochs]
    if new:
        logger.info("epoch %d: no teacher from now on for %s", point.epochs, ", ".join(new))
    return point.epochs


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """Return the content of a checkpoint; callers may change its nested mappings but not its tensors.

    Raises:
        FileFormatError: The checkpoint is missing or damaged.
    """
    try:
        found = checkpoint.stat()
        which: tuple[int, ...] = (found.st_mtime_ns, found.st_ino, found.st_size)
    except OSError:
        which = ()
    state = dict(_read_once(checkpoint, *which))
    model = state["model"] = copy(state["model"])
    extra = model["_extra_state"] = copy(model["_extra_state"])
    extra["carried"] = copy(extra["carried"])
    return state


@lru_cache(maxsize=1)  # Most trials of a search start from the same checkpoint.
def _read_once(checkpoint: Path, *which: int) -> Mapping[str, Any]:
    return read_state(checkpoint)


def _finish(run: RunFolder, parent: RunFolder, cfg: CfgNode, flags: FlagsRecord) -> None:
    """Write the final files of a run that equals a finished run except for its flags."""
    run.write_config(described(cfg.dump()))
    tested = cfg.LOG.TEST_FREQ >= 0
    results = [parent.predictions_npz] if tested else []
    for path in (parent.split_json, parent.data_json, parent.curves_npz, parent.search_curves_npz, *results):
        if path.exists():
            write_link(run.path / path.name, path)
    run.write_flags(flags)
    # Written last, because it marks the run as finished.
    metrics = parent.read_metrics()
    run.write_metrics(metrics if tested else metrics.without_results())


def _has_best_student(run: RunFolder, epoch: int) -> bool:
    """Return whether a checkpoint has its best student, which earlier versions did not keep."""
    return not len(run.read_split().holdout) or _best_student(run, epoch).exists()


def _best_student(run: RunFolder, epoch: int) -> Path:
    """Return the path of the best student on the hold-out up to an epoch with a kept checkpoint."""
    return run.student_best_holdout if epoch == run.read_metrics().epochs_done else run.student_best_until(epoch)
