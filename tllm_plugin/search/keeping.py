"""Which checkpoints of a run are kept while it is trained: those from which waiting trials are going to part."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import monotonic

from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import Detector
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.follower import Follower, Followers

#: Between two checkpoints, and between writing any files of a run: a later search may try other values, and a worker
#: that dies leaves the next one little to do.
SECONDS = 2.0
#: More trials than these are not watched; every checkpoint is kept instead.
MOST_TRIALS = 32


class Keeping:
    """A `Keep` that lets the detectors of other trials watch a run and keeps the checkpoints at which they part.

    Args:
        run: Is trained.
        cfg: Its config.
        waiting: Asked after the first epoch for the configs of the trials, their references named and trained; None
            where they are not known or too many.
        class_names: Of the data.
        followers: Gets those of the trials, and whoever asks for one later finds it.
        seconds: So long after the last one a checkpoint is kept in any case; all are where the trials are not known.
            None: only those where trials part.
    """

    def __init__(
        self,
        run: RunFolder,
        cfg: CfgNode,
        waiting: Callable[[], Sequence[CfgNode] | None],
        class_names: Sequence[str],
        followers: Followers,
        seconds: float | None = SECONDS,
    ) -> None:
        self._of = partial(followers.of, run, RunSpec.of(cfg), class_names=class_names)
        self._waiting = waiting
        self._watching: list[Follower] | None = None
        self._seconds = seconds
        self._all = False
        self._kept_at = monotonic()

    def __call__(self, curves: Curves, detector: Detector) -> bool:
        if self._watching is None:
            waiting = self._waiting()
            self._all = waiting is None and self._seconds is not None
            self._watching = [self._of(cfg, holdout=curves) for cfg in waiting or ()]
        for follower in self._watching:
            follower.watch(curves, detector.epoch_flagged)
        parted = any(follower.parted_after == curves.epochs[-1] for follower in self._watching)
        self._watching = [follower for follower in self._watching if follower.parted_after is None]
        due = self._seconds is not None and monotonic() - self._kept_at >= self._seconds
        if not (self._all or parted or due):
            return False
        self._kept_at = monotonic()
        return True
