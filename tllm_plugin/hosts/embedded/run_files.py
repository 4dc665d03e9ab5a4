"""Files of a run beside `tllm/`: lock, checkpoints and `worklog.txt`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.run_spec import ONE_RUN, RunSpec
from tllm_plugin.hosts.same_data import check_same_data
from tllm_plugin.runs import data_file
from tllm_plugin.runs.atomic import append_text, write_text
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.reading import load_torch
from tllm_plugin.runs.run_folder import RunFolder

logger = logging.getLogger(__name__)

_CHECKPOINT_PARTS = {"epoch", "config", "model", "optimizer", "schedule", "seconds_per_epoch", "rng"}
_REMEDY = "remove that folder, or set EXPERIMENT.NAME or LOG.PREFIX to train another one"


def read_checkpoint(path: Path, cfg: CfgNode) -> Mapping[str, Any]:
    """Read the checkpoint `latest` of `BaseTrainer.save_checkpoint`.

    Raises:
        FileFormatError: The checkpoint is missing or damaged.
        ConfigError: It was written with another config than `cfg`.
    """
    state = read_state(path)
    changed = RunSpec.parse(state["config"]).differing(RunSpec.of(cfg), ONE_RUN)
    if changed:
        raise ConfigError(
            f"Expected the config that {path} was written with, but these keys differ: {', '.join(changed)}; "
            "resume with the same config and overrides, or give the run another EXPERIMENT.NAME"
        )
    return state


def read_state(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint without comparing its config.

    Raises:
        FileFormatError: The checkpoint is missing or damaged.
    """
    state = load_torch(path, "a checkpoint to resume from")
    if not isinstance(state, Mapping) or not set(state) >= _CHECKPOINT_PARTS:
        raise FileFormatError(f"Expected {path} to be a checkpoint of the embedded host, but parts are missing")
    check_finite({name: state[name] for name in ("model", "optimizer")}, path)
    return state


def spec_of(run: RunFolder) -> RunSpec:
    """Return the settings of a run from its `config.yaml` or, without one, from its last checkpoint.

    Raises:
        FileFormatError: Both files are missing, or one is damaged.
    """
    latest = run.log_folder / "latest"
    spec = RunSpec.read(run)
    if not spec.values and latest.exists():
        spec = RunSpec.parse(read_state(latest)["config"])
    if not spec.values:
        raise FileFormatError(f"Expected {run.config_yaml} to be the config of a run, but there is none")
    return spec


def check_resumable(run: RunFolder, cfg: CfgNode, data: DataIdentity) -> None:
    """Check that a run was started with the same config and data.

    Raises:
        FileFormatError: The checkpoint or the data record of the run is damaged.
        ConfigError: The configs or the data differ.
    """
    latest = run.log_folder / "latest"
    recorded = data_file.from_checkpoint(read_checkpoint(latest, cfg), latest)
    remedy = "resume with the same data, or give the run another EXPERIMENT.NAME"
    check_same_data(run.log_folder, run.read_data() if recorded is None else recorded, data, remedy)


def check_same_run(run: RunFolder, cfg: CfgNode, data: DataIdentity) -> None:
    """Check that a finished run was trained with the same config and data, as for a resume.

    Keys that have no effect on the run are ignored, so that runs of earlier versions with other defaults stay usable.

    Args:
        run: Finished run.
        cfg: Config of the required run.
        data: Data of the required run.

    Raises:
        FileFormatError: The config or the data record of the run is damaged.
        ConfigError: The configs or the data differ.
    """
    old, new = spec_of(run), RunSpec.of(cfg)
    changed = [key for key in old.differing(new, ONE_RUN) if old.reads(key) or new.reads(key)]
    if changed:
        raise ConfigError(
            f"Expected the finished run in {run.log_folder} to be the required one, but these keys differ: "
            f"{', '.join(changed)}; {_REMEDY}"
        )
    check_same_data(run.log_folder, run.read_data(), data, _REMEDY)


_PATTERNS = ("epoch_*", "student_*", "tllm/student_best_holdout_*")


def remove_kept(folder: Path, *, after: int) -> None:
    """Remove kept checkpoints after an epoch, which another run or a killed process left behind.

    Args:
        folder: Folder of the run.
        after: Last epoch whose checkpoint is kept.
    """
    for pattern in _PATTERNS:
        for path in folder.glob(pattern):
            epoch = path.name.rpartition("_")[2]
            if epoch.isdecimal() and int(epoch) > after:
                path.unlink(missing_ok=True)


_WORKLOG = "worklog.txt"


def append_epoch(folder: Path, epoch: int, numbers: Mapping[str, float]) -> None:
    """Append the numbers of an epoch to `worklog.txt` in a run's folder."""
    lines = [f"epoch: {epoch}", *(f"{name}: {value:.4f}" for name, value in numbers.items())]
    append_text(folder / _WORKLOG, "\n".join(lines) + "\n")


def copy_until(epoch: int, source: Path, target: Path) -> None:
    """Copy the entries of `worklog.txt` up to `epoch` from folder `source` to `target`, which may be the same."""
    log = source / _WORKLOG
    if log.exists():
        kept, _, _ = log.read_text(encoding="utf-8").partition(f"epoch: {epoch + 1}\n")
        write_text(target / _WORKLOG, kept)


def remove_results(folder: Path) -> None:
    """Remove results of an earlier run, which could be mistaken for results of the run that starts."""
    run_folder = RunFolder.inside(folder)
    results = (
        *(run_folder.metrics_json, run_folder.predictions_npz, run_folder.flags_json, run_folder.policy_json),
        *(run_folder.curves_npz, run_folder.search_curves_npz, run_folder.report_html, run_folder.data_json),
    )
    for path in (folder / "latest", *results):
        path.unlink(missing_ok=True)
