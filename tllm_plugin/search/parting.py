"""Where the run of one config parts from a recorded run that differs in its detector only; the same for every host."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import DETECTORS, Detector
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.embedded.checkpoint import changed_keys
from tllm_plugin.hosts.embedded.same_run import FREE_KEYS
from tllm_plugin.hosts.tllm_node import TREATMENT, build_detector
from tllm_plugin.runs.atomic import write_json
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.fields import count, field, text
from tllm_plugin.runs.flags_file import FlagsRecord
from tllm_plugin.runs.reading import read_json, schema_of
from tllm_plugin.runs.run_folder import RunFolder

_KIND, _VERSION = "fork", 1


@dataclass(frozen=True)
class Parting:
    """Where a new run parts from a recorded one.

    Args:
        run: The recorded one.
        epochs: How many epochs need not be trained.
        checkpoint: Of that epoch; None if there is none, or nothing is shared.
    """

    run: RunFolder
    epochs: int
    checkpoint: Path | None


def latest_parting(recorded: Sequence[tuple[RunFolder, CfgNode]], cfg: CfgNode) -> Parting | None:
    """Return the parting from the run that shares the most epochs, the first of equals; None without runs.

    Args:
        recorded: Runs and their configs; see `parting`.
        cfg: As in `parting`.
    """
    best: Parting | None = None
    for run, old in recorded:
        found = parting(run, old, cfg)
        if best is None or found.epochs > best.epochs:
            best = found
        if best.epochs == cfg.SOLVER.EPOCHS:
            break  # Nothing can share more.
    return best


def parting(run: RunFolder, old: CfgNode, cfg: CfgNode) -> Parting:
    """Return where the run of `cfg` parts from a recorded one; nothing is written.

    Args:
        run: Finished; its checkpoints are named `epoch_N` and `latest`.
        old: Its config, which differs from `cfg` in nothing but `FREE_KEYS`.
        cfg: Checked and frozen, its reference named.
    """
    treated_alike = DETECTORS[old.TLLM.DETECTOR.TYPE].smooths_labels == DETECTORS[cfg.TLLM.DETECTOR.TYPE].smooths_labels
    treated_alike = treated_alike and not any(key in TREATMENT for key in changed_keys(old, cfg))
    curves = Curves.from_state(to_state(run.read_curves()))
    flags = run.read_flags()
    epoch = _first_difference(_detector(cfg, flags, curves), curves, _epochs_flagged(flags), treated_alike)
    checkpoint = _checkpoint(run, epoch)
    if checkpoint is None:
        return Parting(run, 0, None)
    kept = checkpoint.name.removeprefix("epoch_")
    return Parting(run, run.read_metrics().epochs_done if kept == "latest" else int(kept), checkpoint)


def refuse_other_run(run: RunFolder, changed: Sequence[str]) -> None:
    """Raise a `ConfigError` if among the keys that differ is one that matters before the first flag."""
    differing = [key for key in changed if not key.startswith(FREE_KEYS)]
    if differing:
        raise ConfigError(
            f"Expected {run.log_folder} to be the same run but for its detector, but these keys differ: "
            f"{', '.join(differing)}"
        )


def replayed(cfg: CfgNode, run: RunFolder, curves: Curves, epochs: Sequence[int]) -> Detector:
    """Return the detector of `cfg` after it has watched some epochs of a recorded run."""
    detector = _detector(cfg, run.read_flags(), curves)
    for epoch in epochs:
        detector.update(epoch, curves.samples_at(epoch))
    return detector


def note_parting(run: RunFolder, shared: Parting) -> None:
    """Write down from where a run has its first epochs."""
    parent = os.path.relpath(shared.run.log_folder, run.log_folder)
    content = {"parent": Path(parent).as_posix(), "shared_epochs": shared.epochs}
    write_json(run.path / "fork.json", {"schema": schema_of(_KIND), "version": _VERSION, **content})


def shared_with(run: RunFolder) -> tuple[int, RunFolder | None]:
    """Return how many epochs a run did not have to train, and the run that it has them from (None: it has none).

    Raises:
        FileFormatError: The record of that is damaged.
    """
    path = run.path / "fork.json"
    if not path.exists():
        return 0, None
    content = read_json(path, _KIND, _VERSION)
    parent = os.path.normpath(run.log_folder / field(content, "parent", text))
    return field(content, "shared_epochs", count), RunFolder.inside(parent)


def _first_difference(detector: Detector, curves: Curves, flagged_at: Tensor, treated_alike: bool) -> int:
    """Return the epoch after which training differs (0: from the beginning), or the last one recorded.

    Args:
        detector: New; watches the curves.
        curves: Of the recorded run.
        flagged_at: (C,) int64, the epoch after which the recorded run flagged a class, -1 for never.
        treated_alike: Whether both runs do the same with flagged classes.
    """
    for epoch in (0, *curves.epochs):
        flags = detector.update(epoch, curves.samples_at(epoch)) if epoch else detector.flags
        recorded = (flagged_at >= 0) & (flagged_at <= epoch)
        if not flags.equal(recorded) or (bool(recorded.any()) and not treated_alike):
            return epoch
    return curves.epochs[-1] if curves.epochs else 0


def _epochs_flagged(flags: FlagsRecord) -> Tensor:
    return torch.tensor([-1 if item.epoch_flagged is None else item.epoch_flagged for item in flags.classes])


def _detector(cfg: CfgNode, flags: FlagsRecord, curves: Curves) -> Detector:
    return build_detector(
        cfg.TLLM,
        class_names=tuple(item.name for item in flags.classes),
        total_epochs=cfg.SOLVER.EPOCHS,
        holdout=curves,
        has_teacher=cfg.DISTILLER.TYPE != "NONE",
    )


def _checkpoint(run: RunFolder, epoch: int) -> Path | None:
    """Return the last checkpoint of `run` that is not later than `epoch`."""
    if run.read_metrics().epochs_done <= epoch:
        return run.log_folder / "latest"
    kept = (run.log_folder / f"epoch_{number}" for number in range(epoch, 0, -1))
    return next((path for path in kept if path.exists()), None)
