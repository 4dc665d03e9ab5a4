"""Search in mdistiller or a fork: the host's train script runs every trial from a generated config file."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.hosts.extensions import import_words
from tllm_plugin.hosts.run_spec import MARKS_OF_OTHER_HOSTS, RunSpec
from tllm_plugin.runs.atomic import save_torch, write_text
from tllm_plugin.runs.reading import load_torch
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.forking import check_same_but_detector, latest_fork_point, write_fork
from tllm_plugin.search.host import SEARCH_FRACTION, override_words
from tllm_plugin.search.process import ProcessSearch, Wanted
from tllm_plugin.search.space import Dimension, Values, with_values

logger = logging.getLogger(__name__)

# Loops that need the losses or loaders of a particular distiller.
_LOOPS_OF_DISTILLERS = ("crd", "dot", "crd_dot")


class MdistillerSearch(ProcessSearch):
    """Implement `SearchHost`; random numbers differ between runs unless the host's script seeds them.

    A trial starts from the host's checkpoint of the epoch at which it diverges from a finished run. The result equals a
    separate run with the same random numbers, except for the host's log and `best` of the shared epochs.

    Args:
        cfg: Merged, checked and frozen config of the host.
        space: Search space.
        checkpoint_every: Number of epochs between checkpoints from which trials can start.
        words: `--cfg FILE KEY VALUE ...` of the command line, used to print the next command.
    """

    def __init__(
        self, cfg: CfgNode, space: Sequence[Dimension], checkpoint_every: int = 1, words: Sequence[str] = ()
    ) -> None:
        name = cfg.EXPERIMENT.NAME or cfg.EXPERIMENT.TAG
        self._name = f"{name}-search-{RunSpec.of(cfg, MARKS_OF_OTHER_HOSTS).beginning_digest()}"
        self._given = cfg
        super().__init__(cfg, space, Path(cfg.LOG.PREFIX) / cfg.EXPERIMENT.PROJECT / self._name)
        self.checkpoint_every = checkpoint_every
        self.words = tuple(words)

    @property
    def epochs(self) -> int:
        """Of a trial."""
        return int(self.cfg.SOLVER.EPOCHS)

    @property
    def seed(self) -> int:
        """Seed of the search's random numbers; the host has no seed."""
        return int(self.cfg.TLLM.HOLDOUT.SEED)

    def run_named(self, name: str) -> RunFolder:
        """Return the folder of a run, whether it exists or not."""
        return RunFolder.inside(self.folder / name)

    def command(self, wanted: Wanted, *, resume: bool) -> list[str]:
        """Write the config of a run and return the arguments that train it."""
        # Overrides on the command line would become part of the name of the host's folder.
        path = self.folder / "configs" / f"{wanted.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.config(wanted).dump())
        return ["train", "--host", "mdistiller", "--cfg", str(path), *(["--resume"] if resume else [])]

    def config(self, wanted: Wanted) -> CfgNode:
        """Return the config of a run."""
        values: Values = {"EXPERIMENT.NAME": f"{self._name}/{wanted.name}", **wanted.values}
        if not wanted.vanilla and SEARCH_FRACTION not in wanted.values:
            # Other trials may start from it.
            values["LOG.SAVE_CHECKPOINT_FREQ"] = self.checkpoint_every
        if wanted.vanilla:
            values["DISTILLER.TYPE"] = "NONE"
            if self.cfg.TLLM.TRAINER in _LOOPS_OF_DISTILLERS:
                values["TLLM.TRAINER"] = "base"
        return with_values(self.cfg, values)

    def can_resume(self, run: RunFolder) -> bool:
        """Return whether the host has saved a checkpoint."""
        return (run.log_folder / "latest").exists()

    def begin(self, wanted: Wanted, recorded: Sequence[RunFolder]) -> None:
        """Write the checkpoint from which a trial will be resumed, if it shares epochs with a recorded run."""
        cfg, run = self.config(wanted), self.run_named(wanted.name)
        specs = [RunSpec.read(other, MARKS_OF_OTHER_HOSTS) for other in recorded]
        for other, spec in zip(recorded, specs, strict=True):
            check_same_but_detector(other, spec, cfg)
        point = latest_fork_point(list(zip(recorded, specs, strict=True)), cfg)
        if point is None:
            return
        state: Any = load_torch(point.checkpoint, "a checkpoint of mdistiller")
        carried = next(value for name, value in state["model"].items() if name.endswith("_extra_state"))["carried"]
        scored = carried["curves"]["epochs"].tolist()
        carried["detector"] = point.detector_after(scored, cfg).state_dict()
        write_fork(run.create(), point.run, point.epochs)
        save_torch(run.log_folder / "latest", state)
        logger.info("%s shares %d epochs with %s", wanted.name, point.epochs, point.run.log_folder.name)

    def next_command(self, values: Values) -> str:
        """Return the shell command that trains the chosen values."""
        words = [*self.words, *override_words(values, self._given)]
        return shlex.join(["tllm", "train", *import_words(), "--host", "mdistiller", *words])
