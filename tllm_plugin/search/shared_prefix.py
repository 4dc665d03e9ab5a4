"""Runs that differ only in their detector are one run until their flags differ: that part is trained once.

A finished run has recorded everything that another detector would have seen for as long as both flag the same classes
at the same epochs. `fork` lets the other detector watch the recorded curves, and starts its run from the checkpoint of
the epoch after which the two part. What follows is what the run would have been alone, bit for bit on a CPU. Where
they never part, nothing is trained.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import Detector
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.checkpoint import changed_keys, read_state
from tllm_plugin.hosts.embedded.same_run import config_of
from tllm_plugin.hosts.teaching import flags_record
from tllm_plugin.runs.atomic import save_torch, write_bytes, write_text
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.reading import load_torch
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.parting import (
    Parting,
    latest_parting,
    note_parting,
    refuse_other_run,
    replayed,
    shared_with,
)

logger = logging.getLogger(__name__)


def run_sharing(
    base: RunFolder | None,
    cfg: CfgNode,
    bundle: DataBundle | None = None,
    *,
    others: Sequence[RunFolder] = (),
    watch: Callable[[Curves], None] | None = None,
) -> RunFolder:
    """Train what `cfg` describes, from where it parts from a recorded run; a run that is there is used or continued.

    Args:
        base: A finished run, or None; see `fork`.
        cfg: Checked and frozen.
        bundle: The data set, if it is in memory already.
        others: More such runs; the one that shares the most epochs is taken.
        watch: See `job.run`.

    Raises:
        ConfigError: Two runs differ in more than their detector and what is done with flagged classes.
    """
    if not (job.log_folder(cfg) / "latest").exists():
        fork(base, cfg, others=others)
    return job.ensure_trained(cfg, bundle or job.load_bundle(cfg), watch=watch)


def fork(base: RunFolder | None, cfg: CfgNode, *, others: Sequence[RunFolder] = ()) -> int:
    """Write the checkpoint from which the run of `cfg` is to be resumed.

    Of the shared epochs the new run has curves, flags and checkpoints, but no TensorBoard events.

    Args:
        base: A finished run of the embedded host, with `LOG.SAVE_CHECKPOINT_FREQ` 1 for the most to be shared. Under
            the detector `none` it can be shared until the first flag, otherwise until the flags first differ. Or None.
        cfg: Checked and frozen.
        others: More such runs; the one that shares the most epochs is taken.

    Returns:
        How many epochs need not be trained. With 0 nothing was written.

    Raises:
        ConfigError: Two runs differ in more than their detector and what is done with flagged classes.
    """
    cfg, _ = job.named_reference(cfg)
    best = latest_parting([(run, _config_but_for_its_detector(run, cfg)) for run in (base, *others) if run], cfg)
    if best is None or best.checkpoint is None:
        return 0
    curves = Curves.from_state(to_state(best.run.read_curves()))
    state: dict[str, Any] = dict(read_state(best.checkpoint))
    carried = state["model"]["_extra_state"]["carried"]
    recorded = carried["curves"]["epochs"].tolist()
    detector = replayed(cfg, best.run, curves, recorded)
    carried["detector"] = detector.state_dict()
    state["config"] = cfg.dump()
    run = RunFolder.inside(job.log_folder(cfg)).create()
    whole = best.epochs == cfg.SOLVER.EPOCHS
    _copy_best(best, run, curves, curves.epochs if whole else recorded)
    _copy_worklog(best, run)
    note_parting(run, best)
    # The student first: whoever finds `latest` finds its student as well.
    student = best.run.log_folder / f"student_{best.checkpoint.name.removeprefix('epoch_')}"
    write_bytes(run.log_folder / "student_latest", student.read_bytes())
    save_torch(run.log_folder / "latest", state)
    if whole:
        for epoch in curves.epochs[len(recorded) :]:
            detector.update(epoch, curves.samples_at(epoch))
        _finish(run, best.run, cfg, detector)
    names = run.log_folder.name, best.epochs, best.run.log_folder.name
    logger.info("%s shares %d epochs with %s", *names)
    return best.epochs


def _config_but_for_its_detector(run: RunFolder, cfg: CfgNode) -> CfgNode:
    """Return the config of a recorded run; a `ConfigError` says in what else it differs from `cfg`."""
    old = config_of(run)
    refuse_other_run(run, changed_keys(old, cfg))
    return old


def _finish(run: RunFolder, other: RunFolder, cfg: CfgNode, detector: Detector) -> None:
    """Leave behind what a run does that equals a finished one in everything but its evidence."""
    write_text(run.config_yaml, job.described(cfg))
    for path in (other.split_json, other.curves_npz, other.search_curves_npz, other.predictions_npz):
        if path.exists():
            write_bytes(run.path / path.name, path.read_bytes())
    names = [item.name for item in other.read_flags().classes]
    run.write_flags(flags_record(detector, cfg.TLLM, names, cfg.SOLVER.EPOCHS))
    # The last: it says that the run is finished.
    write_bytes(run.metrics_json, other.metrics_json.read_bytes())


def _copy_best(shared: Parting, run: RunFolder, curves: Curves, recorded: list[int]) -> None:
    """Leave behind the student that was best on the hold-out in the shared epochs, as the run alone would have."""
    if not recorded or not curves.labels.numel():
        return
    means = {epoch: curves.mean_accuracy(epoch) for epoch in recorded}
    best = max(reversed(recorded), key=means.__getitem__)  # The last of equals.
    weights = _student_at(shared.run, best)
    if weights is not None:
        student: Any = load_torch(weights, "a student's checkpoint")
        content = {"model": student["model"], "epoch": best, "holdout_accuracy": means[best]}
        save_torch(run.student_best_holdout, content)


def _student_at(run: RunFolder | None, epoch: int) -> Path | None:
    """Return the student's weights after `epoch`: of this run, or of the one that it shares that epoch with."""
    while run is not None:
        path = run.log_folder / f"student_{epoch}"
        if path.exists():
            return path
        if epoch == run.read_metrics().epochs_done:
            return run.log_folder / "student_latest"
        shared_epochs, parent = shared_with(run)
        run = parent if epoch <= shared_epochs else None
    return None


def _copy_worklog(shared: Parting, run: RunFolder) -> None:
    log = shared.run.log_folder / "worklog.txt"
    if log.exists():
        kept, _, _ = log.read_text(encoding="utf-8").partition(f"epoch: {shared.epochs + 1}\n")
        write_text(run.log_folder / "worklog.txt", kept)
