"""Find the epoch at which a run diverges from a recorded run with another detector; shared by all hosts.

A finished run has recorded everything that another detector would have seen, as long as both flag the same classes
after the same epochs. `DetectorReplay` feeds the recorded curves to the other detector until the flags diverge,
`latest_fork_point` finds the last checkpoint before that epoch, and `CheckpointKeeper` keeps such checkpoints during
training.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import pydantic.dataclasses
import torch
from torch import Tensor
from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import DETECTORS, Detector
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.run_spec import ONE_BEGINNING, Mark, RunSpec
from tllm_plugin.hosts.tllm_node import build_detector
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.records import Count, Record, Text
from tllm_plugin.runs.run_folder import RunFolder

#: Between two checkpoints, and between writing any files of a run: a later search may try other values, and a worker
#: that dies leaves the next one little to do.
SECONDS = 2.0
#: More trials than these are not watched; every checkpoint is kept instead.
MOST_TRIALS = 32
# Largest number of cached replays, each of which holds a reference in memory.
_MOST_REPLAYS = 64

#: Run and epoch -> whether all is there that the checkpoint of that epoch needs besides itself.
Usable = Callable[[RunFolder, int], bool]


@pydantic.dataclasses.dataclass(frozen=True)
class ForkRecord(Record):
    """`fork.json`: the run from which a run took its first epochs.

    Args:
        parent: Log folder of the recorded run, relative to the log folder of this run.
        shared_epochs: Number of epochs that were not trained again.
    """

    KIND = "fork"

    parent: Text
    shared_epochs: Count


def write_fork(run: RunFolder, parent: RunFolder, epochs: int) -> None:
    """Write `fork.json` of a run."""
    path = os.path.relpath(parent.log_folder, run.log_folder)
    ForkRecord(Path(path).as_posix(), epochs).write(run.path / "fork.json")


def read_fork(run: RunFolder) -> tuple[int, RunFolder | None]:
    """Return the number of epochs that a run took from its parent, and the parent; 0 and None without one.

    Raises:
        FileFormatError: The record is damaged.
    """
    path = run.path / "fork.json"
    if not path.exists():
        return 0, None
    record = ForkRecord.read(path)
    return record.shared_epochs, RunFolder.inside(os.path.normpath(run.log_folder / record.parent))


class DetectorReplay:
    """Replay a recorded run with the detector of another config until their flags diverge.

    Args:
        detector: New detector that has seen no epoch.
        treated_alike: Whether both runs treat flagged classes in the same way.
    """

    def __init__(self, detector: Detector, *, treated_alike: bool) -> None:
        self.detector = detector
        self.treated_alike = treated_alike
        #: Epoch after which the runs diverge; 0 from the beginning, None not yet.
        self.parted_after: int | None = None
        #: The last epoch that the detector has seen.
        self.watched = -1

    def watch(self, curves: Curves, epoch_flagged: Tensor) -> None:
        """Feed the detector all epochs since the last call, until the flags diverge.

        Args:
            curves: Curves of the run, from its first epoch on.
            epoch_flagged: (C,) int64, the epoch after which the run flagged a class, -1 for never.
        """
        for epoch in (0, *curves.epochs):
            if self.parted_after is not None:
                return
            if epoch <= self.watched:
                continue
            self.watched = epoch
            flags = self.detector.update(epoch, curves.samples_at(epoch)) if epoch else self.detector.flags
            recorded = (epoch_flagged >= 0) & (epoch_flagged <= epoch)
            if not flags.equal(recorded) or (bool(recorded.any()) and not self.treated_alike):
                self.parted_after = epoch


class Replays:
    """Cache of the replays of a search, so that no epoch is replayed twice."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], DetectorReplay] = {}

    def get(
        self, run: RunFolder, old: RunSpec, cfg: CfgNode, class_names: Sequence[str], curves: Curves
    ) -> DetectorReplay:
        """Return the replay of `run` with the detector of `cfg`; a new replay has seen no epoch.

        Args:
            run: Recorded run.
            old: Settings of the run.
            cfg: Config of the trial with its reference filled in; its name identifies the trial.
            class_names: (C,) names.
            curves: Curves of the run.
        """
        key = str(run.path), str(cfg.EXPERIMENT.NAME)
        if key not in self._known:
            if len(self._known) == _MOST_REPLAYS:
                self._known.pop(next(iter(self._known)))
            self._known[key] = DetectorReplay(
                _new_detector(cfg, class_names, curves), treated_alike=_treated_alike(old, RunSpec.of(cfg))
            )
        return self._known[key]


@dataclass(frozen=True)
class ForkPoint:
    """Point at which a new run forks from a recorded one.

    Args:
        run: Recorded run.
        epochs: Number of epochs that need not be trained.
        checkpoint: Checkpoint after that epoch.
        curves: Curves of the recorded run.
        replay: Replay of the recorded run with the detector of the new run.
    """

    run: RunFolder
    epochs: int
    checkpoint: Path
    curves: Curves
    replay: DetectorReplay

    def detector_after(self, epochs: Sequence[int], cfg: CfgNode) -> Detector:
        """Return the state of the new run's detector after the first epochs.

        Args:
            epochs: Number of epochs that the checkpoint has scores of.
            cfg: Config of the new run.
        """
        if epochs and self.replay.watched == epochs[-1]:
            return self.replay.detector
        detector = _new_detector(cfg, [item.name for item in self.run.read_flags().classes], self.curves)
        for epoch in epochs:
            detector.update(epoch, self.curves.samples_at(epoch))
        return detector


def latest_fork_point(
    recorded: Sequence[tuple[RunFolder, RunSpec]],
    cfg: CfgNode,
    replays: Replays | None = None,
    usable: Usable = lambda run, epoch: True,
) -> ForkPoint | None:
    """Return the fork point at which the run of `cfg` shares the most epochs; the first of equals, None without any.

    Args:
        recorded: Finished runs with checkpoints `epoch_N` and `latest`, and their settings, which agree with `cfg` in
            `ONE_BEGINNING`.
        cfg: Checked and frozen config with its reference filled in.
        replays: Replays of the search.
        usable: See `Usable`.
    """
    replays = replays or Replays()
    best: ForkPoint | None = None
    for run, old in recorded:
        found = _fork_point(run, old, cfg, replays, usable)
        if found is not None and (best is None or found.epochs > best.epochs):
            best = found
        if best is not None and best.epochs == cfg.SOLVER.EPOCHS:
            break  # No run can share more.
    return best


def check_same_but_detector(run: RunFolder, old: RunSpec, cfg: CfgNode) -> None:
    """Raise a `ConfigError` if the settings of a run differ from `cfg` before the first flag."""
    differing = old.differing(RunSpec.of(cfg), ONE_BEGINNING)
    if differing:
        raise ConfigError(
            f"Expected {run.log_folder} to differ in its detector only, but these keys differ: {', '.join(differing)}"
        )


class CheckpointKeeper:
    """Decide after each epoch of a run whether its checkpoint is kept; a `Keep` of the embedded host.

    It keeps the checkpoints after which waiting trials diverge from the run, and one every few seconds.

    Args:
        run: Run in training.
        cfg: Config of the run.
        waiting: Returns the configs of the waiting trials, with references filled in and trained; called after the
            first epoch. None if the trials are unknown or too many.
        class_names: (C,) names.
        replays: Replays of the search, which the trials reuse.
        seconds: Longest time between kept checkpoints; if the trials are unknown, all checkpoints are kept. None keeps
            only those after which trials diverge.
    """

    def __init__(
        self,
        run: RunFolder,
        cfg: CfgNode,
        waiting: Callable[[], Sequence[CfgNode] | None],
        class_names: Sequence[str],
        replays: Replays,
        seconds: float | None = SECONDS,
    ) -> None:
        old = RunSpec.of(cfg)
        self._new_replay = lambda trial, curves: replays.get(run, old, trial, class_names, curves)
        self._waiting = waiting
        self._replays: list[DetectorReplay] | None = None
        self._seconds = seconds
        self._keep_all = False
        self._kept_at = monotonic()

    def __call__(self, curves: Curves, detector: Detector) -> bool:
        if self._replays is None:
            trials = self._waiting()
            self._keep_all = trials is None and self._seconds is not None
            self._replays = [self._new_replay(trial, curves) for trial in trials or ()]
        for replay in self._replays:
            replay.watch(curves, detector.epoch_flagged)
        parted = any(replay.parted_after == curves.epochs[-1] for replay in self._replays)
        self._replays = [replay for replay in self._replays if replay.parted_after is None]
        due = self._seconds is not None and monotonic() - self._kept_at >= self._seconds
        keep = self._keep_all or parted or due
        if keep:
            self._kept_at = monotonic()
        return keep


def _fork_point(run: RunFolder, old: RunSpec, cfg: CfgNode, replays: Replays, usable: Usable) -> ForkPoint | None:
    curves = Curves.from_state(to_state(run.read_curves()))
    classes = run.read_flags().classes
    replay = replays.get(run, old, cfg, [item.name for item in classes], curves)
    replay.watch(curves, torch.tensor([-1 if item.epoch_flagged is None else item.epoch_flagged for item in classes]))
    last = replay.parted_after
    if last is None:
        last = curves.epochs[-1] if curves.epochs else 0
    done = run.read_metrics().epochs_done
    names = [(done, "latest"), *((epoch, f"epoch_{epoch}") for epoch in range(min(last, done), 0, -1))]
    for epochs, name in names:
        checkpoint = run.log_folder / name
        if epochs <= last and checkpoint.exists() and usable(run, epochs):
            return ForkPoint(run, epochs, checkpoint, curves, replay)
    return None


def _new_detector(cfg: CfgNode, class_names: Sequence[str], holdout: Curves) -> Detector:
    return build_detector(
        cfg.TLLM,
        class_names=tuple(class_names),
        total_epochs=cfg.SOLVER.EPOCHS,
        holdout=holdout,
        has_teacher=cfg.DISTILLER.TYPE != "NONE",
    )


def _treated_alike(one: RunSpec, other: RunSpec) -> bool:
    """Return whether two runs treat flagged classes in the same way."""
    smooths = {DETECTORS[spec.value("TLLM.DETECTOR.TYPE")].smooths_labels for spec in (one, other)}
    return len(smooths) == 1 and not one.differing(other, frozenset({Mark.TREATMENT}))
