"""Files of a run beside `tllm/`: its lock, its checkpoints, those that are kept, and `worklog.txt`."""

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
    """Read what `BaseTrainer.save_checkpoint` wrote as `latest`.

    Raises:
        FileFormatError: It is missing or damaged.
        ConfigError: It was written under a config other than `cfg`.
    """
    state = read_state(path)
    changed = RunSpec.parse(state["config"]).differing(RunSpec.of(cfg), ONE_RUN)
    if changed:
        raise ConfigError(
            f"Expected the config that {path} was written under, but these keys differ: {', '.join(changed)}; "
            "resume with the same config and overrides, or give the run another EXPERIMENT.NAME"
        )
    return state


def read_state(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint whatever its config.

    Raises:
        FileFormatError: It is missing or damaged.
    """
    state = load_torch(path, "a checkpoint to resume from")
    if not isinstance(state, Mapping) or not set(state) >= _CHECKPOINT_PARTS:
        raise FileFormatError(f"Expected {path} to be a checkpoint of the embedded host, but parts are missing")
    check_finite({name: state[name] for name in ("model", "optimizer")}, path)
    return state


def spec_of(run: RunFolder) -> RunSpec:
    """Return what a run was told, from its `config.yaml` or, without one, from its last checkpoint.

    Raises:
        FileFormatError: Both are missing, or what is there is damaged.
    """
    latest = run.log_folder / "latest"
    spec = RunSpec.read(run)
    if not spec.values and latest.exists():
        spec = RunSpec.parse(read_state(latest)["config"])
    if not spec.values:
        raise FileFormatError(f"Expected {run.config_yaml} to be the config of a run, but there is none")
    return spec


def check_resumable(run: RunFolder, cfg: CfgNode, data: DataIdentity) -> None:
    """Refuse to continue a run that was begun under another config or on other data.

    Raises:
        FileFormatError: Its checkpoint or record of its data is damaged.
        ConfigError: The configs or the data differ.
    """
    latest = run.log_folder / "latest"
    recorded = data_file.from_checkpoint(read_checkpoint(latest, cfg), latest)
    remedy = "resume with the same data, or give the run another EXPERIMENT.NAME"
    check_same_data(run.log_folder, run.read_data() if recorded is None else recorded, data, remedy)


def check_same_run(run: RunFolder, cfg: CfgNode, data: DataIdentity) -> None:
    """Refuse a finished run that was made under another config or on other data, by the comparison that a resume makes.

    Keys that such a run does not look at are left out, so that what an earlier version trained stays usable although
    their defaults have changed.

    Args:
        run: The finished run.
        cfg: Of the run that is needed.
        data: Its data.

    Raises:
        FileFormatError: The run's config or record of its data is damaged.
        ConfigError: The configs or the data differ.
    """
    old, new = spec_of(run), RunSpec.of(cfg)
    changed = [key for key in old.differing(new, ONE_RUN) if old.reads(key) or new.reads(key)]
    if changed:
        raise ConfigError(
            f"Expected the finished run in {run.log_folder} to be the one that is needed, but these keys differ: "
            f"{', '.join(changed)}; {_REMEDY}"
        )
    check_same_data(run.log_folder, run.read_data(), data, _REMEDY)


_PATTERNS = ("epoch_*", "student_*", "tllm/student_best_holdout_*")


def remove_kept(folder: Path, *, after: int) -> None:
    """Remove what was kept after an epoch, by another run or by a process that was killed before it wrote `latest`.

    Args:
        folder: Of the run.
        after: The last epoch whose checkpoint stays.
    """
    for pattern in _PATTERNS:
        for path in folder.glob(pattern):
            epoch = path.name.rpartition("_")[2]
            if epoch.isdecimal() and int(epoch) > after:
                path.unlink(missing_ok=True)


_WORKLOG = "worklog.txt"


def append_epoch(folder: Path, epoch: int, numbers: Mapping[str, float]) -> None:
    """Add the numbers of an epoch to the log of the run in a folder."""
    lines = [f"epoch: {epoch}", *(f"{name}: {value:.4f}" for name, value in numbers.items())]
    append_text(folder / _WORKLOG, "\n".join(lines) + "\n")


def copy_until(epoch: int, source: Path, target: Path) -> None:
    """Let the log in the folder `target` be what that in `source` says of the epochs up to `epoch`; both may be one."""
    log = source / _WORKLOG
    if log.exists():
        kept, _, _ = log.read_text(encoding="utf-8").partition(f"epoch: {epoch + 1}\n")
        write_text(target / _WORKLOG, kept)


def remove_results(folder: Path) -> None:
    """Remove what would pass for results of the run that is about to start."""
    run_folder = RunFolder.inside(folder)
    results = (
        *(run_folder.metrics_json, run_folder.predictions_npz, run_folder.flags_json, run_folder.policy_json),
        *(run_folder.curves_npz, run_folder.search_curves_npz, run_folder.report_html, run_folder.data_json),
    )
    for path in (folder / "latest", *results):
        path.unlink(missing_ok=True)
