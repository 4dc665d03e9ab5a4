"""Detectors that watch the run of another config, until training under them would have gone on in another way."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import DETECTORS, Detector
from tllm_plugin.hosts.run_spec import Mark, RunSpec
from tllm_plugin.hosts.tllm_node import build_detector
from tllm_plugin.runs.run_folder import RunFolder

#: More are not remembered: each has a reference in memory.
_MOST_REMEMBERED = 64


class Follower:
    """One detector that watches a run of another config.

    Args:
        detector: New.
        treated_alike: Whether both runs do the same with flagged classes.
    """

    def __init__(self, detector: Detector, *, treated_alike: bool) -> None:
        self.detector = detector
        self.treated_alike = treated_alike
        #: The epoch after which the two part; 0: from the beginning, None: they have not.
        self.parted_after: int | None = None
        #: The last epoch that the detector has seen.
        self.watched = -1

    def watch(self, curves: Curves, epoch_flagged: Tensor) -> None:
        """Look at the epochs that have come since the last call; after the parting at nothing.

        Args:
            curves: Of the run, from its first epoch on.
            epoch_flagged: (C,) int64, the epoch after which the run flagged a class, -1 for never.
        """
        for epoch in (0, *curves.epochs):
            if self.parted_after is not None:
                break
            if epoch <= self.watched:
                continue
            self.watched = epoch
            flags = self.detector.update(epoch, curves.samples_at(epoch)) if epoch else self.detector.flags
            recorded = (epoch_flagged >= 0) & (epoch_flagged <= epoch)
            if not flags.equal(recorded) or (bool(recorded.any()) and not self.treated_alike):
                self.parted_after = epoch


class Followers:
    """Followers by run and trial. What one has watched while the run was trained need not be shown to it again."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], Follower] = {}

    def of(
        self, run: RunFolder, old: RunSpec, cfg: CfgNode, *, class_names: Sequence[str], holdout: Curves
    ) -> Follower:
        """Return the follower of `run` that has the detector of `cfg`.

        Args:
            run: What is watched.
            old: What it was told.
            cfg: Of the trial, its reference named; the trial is known by its name.
            class_names: Length C.
            holdout: The run's curves.
        """
        key = str(run.path), str(cfg.EXPERIMENT.NAME)
        if key not in self._known:
            while len(self._known) >= _MOST_REMEMBERED:
                self._known.pop(next(iter(self._known)))
            detector = new_detector(cfg, class_names, holdout)
            self._known[key] = Follower(detector, treated_alike=treated_alike(old, RunSpec.of(cfg)))
        return self._known[key]


def new_detector(cfg: CfgNode, class_names: Sequence[str], holdout: Curves) -> Detector:
    """Make the detector of a config; see `build_detector`."""
    return build_detector(
        cfg.TLLM,
        class_names=tuple(class_names),
        total_epochs=cfg.SOLVER.EPOCHS,
        holdout=holdout,
        has_teacher=cfg.DISTILLER.TYPE != "NONE",
    )


def treated_alike(one: RunSpec, other: RunSpec) -> bool:
    """Tell whether two runs do the same with flagged classes."""
    smooths = {DETECTORS[spec.value("TLLM.DETECTOR.TYPE")].smooths_labels for spec in (one, other)}
    return len(smooths) == 1 and not one.differing(other, frozenset({Mark.TREATMENT}))
