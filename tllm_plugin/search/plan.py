"""The runs of a search: their configs, their folders, and what has to be trained before the first trial."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.locks import held
from tllm_plugin.search.shared_prefix import run_sharing
from tllm_plugin.search.space import Dimension, with_values

logger = logging.getLogger(__name__)

SEARCH_FRACTION = "TLLM.HOLDOUT.SEARCH_FRACTION"
NAME = "EXPERIMENT.NAME"
TYPE = "TLLM.DETECTOR.TYPE"
_NO_EFFECT = ("EXPERIMENT.NAME", "EXPERIMENT.TAG", "EXPERIMENT.PROJECT", "DATASET.NUM_WORKERS", "DATASET.DOWNLOAD")


@dataclass(frozen=True)
class Baselines:
    """What trials are compared with.

    Args:
        base: Taught to the end (detector `none`); what all trials begin with.
        vanilla: The reference; None where no detector needs one or the config names its own.
    """

    base: RunFolder
    vanilla: RunFolder | None


class Plan:
    """Every config that a search trains.

    The folder of a search is named after everything but what can be searched, and that of a trial after the rest: a
    search that is repeated, or made with other values, finds what has been trained.

    Args:
        cfg: Checked and frozen. Without a search hold-out it gets one of the size of the detection hold-out.
        space: What is searched.
        checkpoint_every: Epochs between the checkpoints that trials can part from.
    """

    def __init__(self, cfg: CfgNode, space: Sequence[Dimension], checkpoint_every: int = 1) -> None:
        fraction = cfg.TLLM.HOLDOUT.SEARCH_FRACTION or cfg.TLLM.HOLDOUT.FRACTION
        self.cfg = with_values(cfg, {SEARCH_FRACTION: fraction})
        self.space = tuple(space)
        self.checkpoint_every = checkpoint_every
        run_name = job.experiment_name(cfg)[len(cfg.EXPERIMENT.PROJECT) + 1 :]
        self._name = f"{run_name}-search-{self._digest()}"
        self.folder = Path(cfg.LOG.PREFIX) / cfg.EXPERIMENT.PROJECT / self._name

    def base(self) -> CfgNode:
        """Return the config of the run that all trials share their beginning with."""
        return self._inside("taught", {TYPE: "none"})

    def trial(self, values: Mapping[str, Any]) -> CfgNode:
        """Return the config of a trial."""
        return self._inside(f"trial-{self._trial_digest(values)}", values)

    def final(self, values: Mapping[str, Any]) -> CfgNode:
        """Return the config of the student that is trained with the choice, on the search hold-out as well."""
        values = {**values, SEARCH_FRACTION: 0.0, NAME: f"{self._name}/final-{self._trial_digest(values)}"}
        return with_values(self.cfg, values)

    def run_of(self, values: Mapping[str, Any]) -> RunFolder:
        """Return the folder of a trial, whether it exists or not."""
        return RunFolder.inside(job.log_folder(self.trial(values)))

    def prepare(self, bundle: DataBundle) -> Baselines:
        """Train what all trials need and is not there; of several processes one does, the others wait."""
        cfg = self.cfg
        with held(self.folder / "locks" / "prepare"):
            if cfg.DISTILLER.TYPE != "NONE" and not cfg.DISTILLER.TEACHER_CHECKPOINT:
                epochs = cfg.DISTILLER.TEACHER_EPOCHS or cfg.SOLVER.EPOCHS
                job.ensure_trained(job.prerequisite(cfg, cfg.DISTILLER.TEACHER, epochs, "teacher"), bundle)
            vanilla = self._vanilla()
            reference = None if vanilla is None else job.ensure_trained(vanilla, bundle)
            return Baselines(job.ensure_trained(self.base(), bundle), reference)

    def train(
        self, values: Mapping[str, Any], baselines: Baselines, others: Sequence[RunFolder], bundle: DataBundle
    ) -> RunFolder:
        """Return the finished run of a trial, begun where it parts from the base or from one of the `others`."""
        run = self.run_of(values)
        # Another worker may have drawn the same values.
        with held(self.folder / "locks" / run.log_folder.name):
            others = [other for other in others if other.path != run.path]
            return run_sharing(baselines.base, self.trial(values), bundle, others=others)

    def train_final(self, values: Mapping[str, Any], bundle: DataBundle) -> RunFolder:
        """Return the finished run of the chosen values on everything but the detection hold-out.

        The teacher and the reference are trained on that, too, unless the config names its own.
        """
        with held(self.folder / "locks" / "final"):
            return job.ensure_trained(self.final(values), bundle)

    def _vanilla(self) -> CfgNode | None:
        kinds = next((item.choices for item in self.space if item.key == TYPE), (self.cfg.TLLM.DETECTOR.TYPE,))
        found = (job.named_reference(with_values(self.cfg, {TYPE: kind}))[1] for kind in kinds)
        return next((vanilla for vanilla in found if vanilla is not None), None)

    def _inside(self, name: str, values: Mapping[str, Any]) -> CfgNode:
        frequency = {"LOG.SAVE_CHECKPOINT_FREQ": self.checkpoint_every}
        return with_values(self.cfg, {**values, NAME: f"{self._name}/{name}", **frequency})

    def _digest(self) -> str:
        """Digest everything that a result depends on but what is searched."""
        default = default_config()
        plain = self.cfg.clone()
        plain.defrost()
        plain.LOG = default.LOG
        plain.TLLM = default.TLLM
        for name in ("DISTILLER", "TRAINER", "HOLDOUT"):
            plain.TLLM[name] = self.cfg.TLLM[name]
        for key in _NO_EFFECT:
            node, _, name = key.partition(".")
            plain[node][name] = default[node][name]
        return _sha(plain.dump())

    def _trial_digest(self, values: Mapping[str, Any]) -> str:
        tllm = with_values(self.cfg, values).TLLM
        return _sha(tllm.dump())


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]
