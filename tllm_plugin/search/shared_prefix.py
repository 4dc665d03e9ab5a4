"""Runs that differ only in their detector are one run until their flags differ: that part is trained once.

A finished run has recorded everything that another detector would have seen for as long as both flag the same classes
at the same epochs. `fork` lets the other detector watch the recorded curves, and starts its run from the checkpoint of
the epoch after which the two part. What follows is what the run would have been alone, bit for bit (on a GPU unless
`RUNTIME.DETERMINISTIC` is False). Where they never part, nothing is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.detectors import Detector
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.checkpoint import read_state, spec_of
from tllm_plugin.hosts.embedded.worklog import copy_until
from tllm_plugin.hosts.same_data import check_same_data
from tllm_plugin.hosts.teaching import flags_record
from tllm_plugin.runs.atomic import save_torch, write_link
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.follower import Followers
from tllm_plugin.search.parting import (
    latest_parting,
    note_parting,
    refuse_other_run,
    replayed,
)

logger = logging.getLogger(__name__)


def run_sharing(
    base: RunFolder | None,
    cfg: CfgNode,
    bundle: DataBundle | None = None,
    *,
    others: Sequence[RunFolder] = (),
    watch: Callable[[Curves], None] | None = None,
    keep: job.Keep | None = None,
    followers: Followers | None = None,
) -> RunFolder:
    """Train what `cfg` describes, from where it parts from a recorded run; a run that is there is used or continued.

    Args:
        base: A finished run, or None; see `fork`.
        cfg: Checked and frozen.
        bundle: The data set, if it is in memory already.
        others: More such runs; the one that shares the most epochs is taken.
        watch: See `job.run`.
        keep: See `job.Keep`.
        followers: Those that have watched the runs already.

    Raises:
        ConfigError: Two runs differ in more than their detector and what is done with flagged classes.
    """
    folder = job.log_folder(cfg)
    # Its files are not to be replaced by those of an earlier epoch because somebody has removed `latest`.
    if not ((folder / "latest").exists() or RunFolder.inside(folder).is_finished()):
        bundle = bundle or job.load_bundle(cfg)
        fork(base, cfg, bundle.identity, others=others, followers=followers)
    return job.ensure_trained(cfg, bundle or job.load_bundle(cfg), watch=watch, keep=keep)


def fork(
    base: RunFolder | None,
    cfg: CfgNode,
    data: DataIdentity | None = None,
    *,
    others: Sequence[RunFolder] = (),
    followers: Followers | None = None,
) -> int:
    """Write the checkpoint from which the run of `cfg` is to be resumed.

    Of the shared epochs the new run has curves, flags and checkpoints, but no TensorBoard events.

    Args:
        base: A finished run of the embedded host, with `LOG.SAVE_CHECKPOINT_FREQ` 1 for the most to be shared. Under
            the detector `none` it can be shared until the first flag, otherwise until the flags first differ. Or None.
        cfg: Checked and frozen.
        data: What it is to be trained on; None if that is known to be the same.
        others: More such runs; the one that shares the most epochs is taken.
        followers: Those that have watched the runs already.

    Returns:
        How many epochs need not be trained. With 0 nothing was written.

    Raises:
        ConfigError: Runs differ in more than their detector and the treatment of flagged classes, or in their data.
    """
    cfg, _ = job.named_reference(cfg, data)
    for other in (base, *others):
        if other is not None and data is not None:
            check_same_data(other.log_folder, other.read_data(), data, "set EXPERIMENT.NAME to search anew")
    recorded = [(run, spec_of(run)) for run in (base, *others) if run]
    for run, spec in recorded:
        refuse_other_run(run, spec, cfg)
    best = latest_parting(recorded, cfg, followers, _has_best_student)
    if best is None or best.checkpoint is None:
        return 0
    curves = Curves.from_state(to_state(best.run.read_curves()))
    state = _state_of(best.checkpoint)
    carried = state["model"]["_extra_state"]["carried"]
    scored = carried["curves"]["epochs"].tolist()
    detector = replayed(cfg, best, curves, scored)
    carried["detector"] = detector.state_dict()
    state["model"]["undistillable"] = detector.flags
    state["config"] = dumped = cfg.dump()
    run = RunFolder.inside(job.log_folder(cfg)).create()
    whole = best.epochs == cfg.SOLVER.EPOCHS
    student = _best_student(best.run, best.epochs)
    if student.exists():
        write_link(run.student_best_holdout, student)
    copy_until(best.epochs, best.run.log_folder, run.log_folder)
    note_parting(run, best)
    # The student first: whoever finds `latest` finds its student as well.
    weights = best.run.log_folder / f"student_{best.checkpoint.name.removeprefix('epoch_')}"
    write_link(run.log_folder / "student_latest", weights)
    save_torch(run.log_folder / "latest", state)
    if whole:
        for epoch in curves.epochs[len(scored) :]:
            detector.update(epoch, curves.samples_at(epoch))
        _finish(run, best.run, cfg, dumped, detector)
    names = run.log_folder.name, best.epochs, best.run.log_folder.name
    logger.info("%s shares %d epochs with %s", *names)
    classes = zip(best.run.read_flags().classes, detector.epoch_flagged.tolist(), strict=True)
    new = [item.name for item, epoch in classes if epoch == best.epochs]
    if new and not whole:
        logger.info("epoch %d: no teacher from now on for %s", best.epochs, ", ".join(new))
    return best.epochs


def _state_of(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint holds; mappings down to what the wrapper carries may be changed, but no tensor.

    Raises:
        FileFormatError: It is missing or damaged.
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


@lru_cache(maxsize=1)  # The trials of a search part from one run, most of them from one checkpoint.
def _read_once(checkpoint: Path, *which: int) -> Mapping[str, Any]:
    return read_state(checkpoint)


def _finish(run: RunFolder, other: RunFolder, cfg: CfgNode, dumped: str, detector: Detector) -> None:
    """Leave behind what a run does that equals a finished one in everything but its evidence."""
    run.write_config(job.described(dumped))
    tested = cfg.LOG.TEST_FREQ >= 0
    results = [other.predictions_npz] if tested else []
    for path in (other.split_json, other.data_json, other.curves_npz, other.search_curves_npz, *results):
        if path.exists():
            write_link(run.path / path.name, path)
    names = [item.name for item in other.read_flags().classes]
    run.write_flags(flags_record(detector, cfg.TLLM, names, cfg.SOLVER.EPOCHS))
    # The last: it says that the run is finished.
    metrics = other.read_metrics()
    run.write_metrics(metrics if tested else metrics.without_results())


def _has_best_student(run: RunFolder, epoch: int) -> bool:
    """Tell whether all of a checkpoint is there; earlier versions kept no best student with it."""
    return not len(run.read_split().holdout) or _best_student(run, epoch).exists()


def _best_student(run: RunFolder, epoch: int) -> Path:
    """Return the student that was best on the hold-out until an epoch whose checkpoint was kept, or the last one."""
    return run.student_best_holdout if epoch == run.read_metrics().epochs_done else run.student_best_until(epoch)
