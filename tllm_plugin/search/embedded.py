"""Search on the embedded host, in this process; each trial forks from the run with which it shares most epochs."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

from yacs.config import CfgNode

from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.embedded.prerequisites import experiment_name, log_folder, named_reference, needed_teacher
from tllm_plugin.hosts.extensions import import_words
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.runs.locks import each_under_its_lock, held
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.forking import MOST_TRIALS, SECONDS, CheckpointKeeper, Replays
from tllm_plugin.search.host import SEARCH_FRACTION, Baselines, Watch, override_words, tllm_digest
from tllm_plugin.search.shared_prefix import run_sharing
from tllm_plugin.search.space import TYPE, Dimension, Values, detector_kinds, grid, with_values

NAME = "EXPERIMENT.NAME"
NEVER = -1


class EmbeddedSearch:
    """Configs and runs of a search on the embedded host; see `SearchHost`.

    The folder of a search is named after all keys that cannot be searched, and the folder of a trial after the others,
    so that a repeated search, or one over other values, finds existing runs. Only the final student and its
    prerequisites are tested; trials never see test data. Files are written where trials diverge, and every few seconds.

    Args:
        cfg: Checked and frozen config. Without a search hold-out it gets one of the size of the detection hold-out.
        space: Search space.
        checkpoint_every: Epochs between checkpoints that are kept in addition to those from which known trials fork; 0
            leaves the choice to `CheckpointKeeper`.
        words: `--cfg FILE KEY VALUE ...` of the command line, used to print the next command.
    """

    def __init__(
        self, cfg: CfgNode, space: Sequence[Dimension], checkpoint_every: int = 0, words: Sequence[str] = ()
    ) -> None:
        self._given = cfg
        fraction = cfg.TLLM.HOLDOUT.SEARCH_FRACTION or cfg.TLLM.HOLDOUT.FRACTION
        self._asked = with_values(cfg, {SEARCH_FRACTION: fraction})
        self.cfg = with_values(self._asked, {"LOG.TEST_FREQ": NEVER, "LOG.SAVE_SECONDS": SECONDS})
        self.space = tuple(space)
        self.checkpoint_every = checkpoint_every
        self.words = tuple(words)
        self._trials: dict[str, CfgNode] = {}
        self._replays = Replays()
        self._run_name = experiment_name(cfg)[len(cfg.EXPERIMENT.PROJECT) + 1 :]
        beginning = RunSpec.of(self.cfg).beginning_digest(instead=RunSpec.of(default_config()))
        self._name = f"{self._run_name}-search-{beginning}"
        self.folder = Path(cfg.LOG.PREFIX) / cfg.EXPERIMENT.PROJECT / self._name

    @property
    def epochs(self) -> int:
        """Epochs of a trial."""
        return int(self.cfg.SOLVER.EPOCHS)

    @property
    def seed(self) -> int:
        """Seed of the search."""
        return int(self.cfg.EXPERIMENT.SEED)

    @cached_property
    def bundle(self) -> DataBundle:
        """The data set."""
        return load_bundle(self.cfg)

    def taught(self) -> CfgNode:
        """Return the config of the run without detection."""
        return self._inside("taught", {TYPE: "none"})

    def trial(self, values: Values) -> CfgNode:
        """Return the config of a trial."""
        key = repr(sorted(values.items()))
        if key not in self._trials:
            self._trials[key] = self._inside(f"trial-{self._trial_digest(values)}", values)
        return self._trials[key]

    def final(self, values: Values) -> CfgNode:
        """Return the config of the final student, which is also trained on the search hold-out."""
        values = {**values, SEARCH_FRACTION: 0.0, NAME: f"{self._name}/final-{self._trial_digest(values)}"}
        return with_values(self._asked, values)

    def run_of(self, values: Values) -> RunFolder:
        """Return the folder of a trial, whether it exists or not."""
        return RunFolder.inside(log_folder(self.trial(values)))

    def prepare(self, *, taught: bool = True) -> Baselines:
        """Train the missing runs that all trials need; several workers train different ones."""
        locks = self.folder / "locks"
        teacher, vanilla = needed_teacher(self.cfg, self.bundle.identity), self._vanilla()
        # First, because the two other runs are trained simultaneously and both may need it.
        if teacher is not None:
            each_under_its_lock(locks, {"teacher": self._task(teacher)})
        tasks = {}
        if vanilla is not None:
            tasks["vanilla"] = self._task(vanilla)
        if taught:
            tasks["taught"] = self._task(self.taught(), self._keep(self.taught()))
        runs = each_under_its_lock(locks, tasks)
        return Baselines(runs.get("taught"), runs.get("vanilla"))

    def train(
        self, values: Values, baselines: Baselines, others: Sequence[RunFolder], watch: Watch | None = None
    ) -> RunFolder:
        """Return the finished run of a trial, forked from an existing run where the two diverge."""
        run = self.run_of(values)
        # Another worker may have drawn the same values.
        with held(self.folder / "locks" / run.log_folder.name):
            recorded = [other for other in (baselines.taught, *others) if other is not None and other.path != run.path]
            cfg = self.trial(values)
            keep = self._keep(cfg)
            return run_sharing(recorded, cfg, self.bundle, watch=watch, keep=keep, replays=self._replays)

    def train_final(self, values: Values) -> RunFolder:
        """Return the finished run of the chosen values, trained on everything except the detection hold-out.

        The teacher and the reference are trained on the same data unless the config names them.
        """
        with held(self.folder / "locks" / "final"):
            return recipe.ensure_trained(self.final(values), self.bundle)

    def next_command(self, values: Values) -> str:
        """Return the shell command that trains the chosen values as a run with its own name."""
        name = {NAME: f"{self._run_name}-chosen-{self._trial_digest(values)}"}
        words = [*self.words, *override_words({**name, **values}, self._given)]
        return shlex.join(["tllm", "train", *import_words(), *words])

    def _task(self, cfg: CfgNode, keep: CheckpointKeeper | None = None) -> Callable[[int], RunFolder]:
        """Return a function that trains a missing run while its lock is held."""
        return lambda _: recipe.ensure_trained(cfg, self.bundle, keep=keep)

    def _keep(self, cfg: CfgNode) -> CheckpointKeeper:
        """Return the callback that decides which checkpoints are kept in addition to `checkpoint_every`."""
        run = RunFolder.inside(log_folder(cfg))
        seconds = None if self.checkpoint_every else SECONDS
        return CheckpointKeeper(run, cfg, self._waiting, self.bundle.class_names, self._replays, seconds)

    def _waiting(self) -> list[CfgNode] | None:
        """Return the configs of the trials still to be trained, with their references; None if they are unknown yet."""
        # A range has no choices. There may be more combinations than memory can hold.
        if not 0 < math.prod(len(item.choices) for item in self.space) <= MOST_TRIALS:
            return None
        waiting = []
        for values in grid(self.space):
            cfg, vanilla = named_reference(self.trial(values), self.bundle.identity)
            if vanilla is not None and not RunFolder.inside(log_folder(vanilla)).is_finished():
                return None  # Another worker trains it.
            if not self.run_of(values).is_finished():
                waiting.append(cfg)
        return waiting

    def _vanilla(self) -> CfgNode | None:
        kinds = detector_kinds(self.space, self.cfg)
        data = self.bundle.identity
        found = (named_reference(with_values(self.cfg, {TYPE: kind}), data)[1] for kind in kinds)
        return next((vanilla for vanilla in found if vanilla is not None), None)

    def _inside(self, name: str, values: Values) -> CfgNode:
        frequency = {"LOG.SAVE_CHECKPOINT_FREQ": self.checkpoint_every or self.epochs}
        return with_values(self.cfg, {**values, NAME: f"{self._name}/{name}", **frequency})

    def _trial_digest(self, values: Values) -> str:
        return tllm_digest(with_values(self.cfg, values))
