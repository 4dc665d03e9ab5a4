"""Where the run of one config parts from a recorded run that differs in its detector only; the same for every host."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import Detector
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.run_spec import ONE_BEGINNING, RunSpec
from tllm_plugin.runs.atomic import write_json
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.fields import count, field, text
from tllm_plugin.runs.flags_file import FlagsRecord
from tllm_plugin.runs.run_folder import RunFolder, read_record
from tllm_plugin.runs.stamps import stamped
from tllm_plugin.search.follower import Follower, Followers, new_detector

_KIND, _VERSION = "fork", 1

#: Run and epoch -> whether all is there that the checkpoint of that epoch needs besides itself.
Usable = Callable[[RunFolder, int], bool]


@dataclass(frozen=True)
class Parting:
    """Where a new run parts from a recorded one.

    Args:
        run: The recorded one.
        epochs: How many epochs need not be trained.
        checkpoint: Of that epoch; None if there is none, or nothing is shared.
        follower: Has watched the recorded run with the new one's detector until they part.
    """

    run: RunFolder
    epochs: int
    checkpoint: Path | None
    follower: Follower


def latest_parting(
    recorded: Sequence[tuple[RunFolder, RunSpec]],
    cfg: CfgNode,
    followers: Followers | None = None,
    usable: Usable = lambda run, epoch: True,
) -> Parting | None:
    """Return the parting from the run that shares the most epochs, the first of equals; None without runs.

    Args:
        recorded: Runs and what they were told; see `parting`.
        cfg: As in `parting`.
        followers: Those that have watched the runs already.
        usable: See `Usable`.
    """
    followers = followers or Followers()
    best: Parting | None = None
    for run, old in recorded:
        found = parting(run, old, cfg, followers, usable)
        if best is None or found.epochs > best.epochs:
            best = found
        if best.epochs == cfg.SOLVER.EPOCHS:
            break  # Nothing can share more.
    return best


def parting(run: RunFolder, old: RunSpec, cfg: CfgNode, followers: Followers, usable: Usable) -> Parting:
    """Return where the run of `cfg` parts from a recorded one; nothing is written.

    Args:
        run: Finished; its checkpoints are named `epoch_N` and `latest`.
        old: What it was told; with `cfg` it has `ONE_BEGINNING`.
        cfg: Checked and frozen, its reference named.
        followers: Those that have watched the run already.
        usable: See `Usable`.
    """
    curves = Curves.from_state(to_state(run.read_curves()))
    flags = run.read_flags()
    follower = followers.of(run, old, cfg, class_names=_class_names(flags), holdout=curves)
    follower.watch(curves, _epochs_flagged(flags))
    recorded = curves.epochs[-1] if curves.epochs else 0
    checkpoint = _checkpoint(run, recorded if follower.parted_after is None else follower.parted_after, usable)
    if checkpoint is None:
        return Parting(run, 0, None, follower)
    kept = checkpoint.name.removeprefix("epoch_")
    epochs = run.read_metrics().epochs_done if kept == "latest" else int(kept)
    return Parting(run, epochs, checkpoint, follower)


def refuse_other_run(run: RunFolder, old: RunSpec, cfg: CfgNode) -> None:
    """Raise a `ConfigError` if a run was told otherwise than `cfg` says in what matters before the first flag."""
    differing = old.differing(RunSpec.of(cfg), ONE_BEGINNING)
    if differing:
        raise ConfigError(
            f"Expected {run.log_folder} to be the same run but for its detector, but these keys differ: "
            f"{', '.join(differing)}"
        )


def replayed(cfg: CfgNode, shared: Parting, curves: Curves, epochs: Sequence[int]) -> Detector:
    """Return the detector of `cfg` after it has watched the first epochs of the run that `cfg` parts from."""
    if epochs and shared.follower.watched == epochs[-1]:
        return shared.follower.detector
    detector = new_detector(cfg, _class_names(shared.run.read_flags()), curves)
    for epoch in epochs:
        detector.update(epoch, curves.samples_at(epoch))
    return detector


def note_parting(run: RunFolder, shared: Parting) -> None:
    """Write down from where a run has its first epochs."""
    parent = os.path.relpath(shared.run.log_folder, run.log_folder)
    content = {"parent": Path(parent).as_posix(), "shared_epochs": shared.epochs}
    write_json(run.path / "fork.json", stamped(_KIND, _VERSION, content))


def shared_with(run: RunFolder) -> tuple[int, RunFolder | None]:
    """Return how many epochs a run did not have to train, and the run that it has them from (None: it has none).

    Raises:
        FileFormatError: The record of that is damaged.
    """
    path = run.path / "fork.json"
    if not path.exists():
        return 0, None
    epochs, parent = read_record(
        path, _KIND, _VERSION, lambda content: (field(content, "shared_epochs", count), field(content, "parent", text))
    )
    return epochs, RunFolder.inside(os.path.normpath(run.log_folder / parent))


def _class_names(flags: FlagsRecord) -> tuple[str, ...]:
    return tuple(item.name for item in flags.classes)


def _epochs_flagged(flags: FlagsRecord) -> Tensor:
    return torch.tensor([-1 if item.epoch_flagged is None else item.epoch_flagged for item in flags.classes])


def _checkpoint(run: RunFolder, epoch: int, usable: Usable) -> Path | None:
    """Return the last usable checkpoint of `run` that is not later than `epoch`."""
    done = run.read_metrics().epochs_done
    if done <= epoch and usable(run, done) and (run.log_folder / "latest").exists():
        return run.log_folder / "latest"
    for number in range(min(epoch, done), 0, -1):
        path = run.log_folder / f"epoch_{number}"
        if path.exists() and usable(run, number):
            return path
    return None
