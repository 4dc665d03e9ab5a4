"""What a run of RepDistiller continues from, and when it may."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.run_spec import ONE_RUN, RunSpec
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.reading import load_torch
from tllm_plugin.runs.run_folder import RunFolder

STATE_VERSION = 1
_PARTS = {"version", "epoch", "best_acc", "seconds", "options", "wrapper", "optimizer"}


def plain_options(options: argparse.Namespace) -> dict[str, Any]:
    """Return all options, sorted by name; what a file cannot hold is named by its kind."""
    return {name: _plain(value) for name, value in sorted(vars(options).items())}


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    return f"<{type(value).__module__}.{type(value).__qualname__}>"


def read_state(folder: RunFolder, options: Mapping[str, Any]) -> Mapping[str, Any]:
    """Read the checkpoint of a run that was made with `options`.

    Raises:
        ConfigError: There is none, or it was made with other options.
        FileFormatError: It is damaged or of another version, or has weights that are not finite.
    """
    if not folder.state.exists():
        raise ConfigError(
            f"Expected {folder.path} to hold a checkpoint for `--tllm_resume`, but there is none: no epoch was "
            "finished under these options; start without it"
        )
    state = load_torch(folder.state, "a checkpoint to resume from")
    if not isinstance(state, Mapping) or not set(state) >= _PARTS or state["version"] != STATE_VERSION:
        raise FileFormatError(
            f"Expected {folder.state} to be a checkpoint of RepDistiller with TLLM, version {STATE_VERSION}, but it is "
            "something else; start the run anew"
        )
    check_finite({name: state[name] for name in ("wrapper", "optimizer")}, folder.state)
    changed = RunSpec.of_options(state["options"]).differing(RunSpec.of_options(options), ONE_RUN)
    if changed:
        names = ", ".join(f"--{name}" for name in changed)
        raise ConfigError(
            f"Expected the options that {folder.state} was written under, but these differ: {names}; resume with the "
            "same ones, or give the run another --trial"
        )
    return state
