"""Reading the embedded host's checkpoints, and telling whether two configs describe one run."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.options import renamed
from tllm_plugin.hosts.yaml_text import plain, read_yaml
from tllm_plugin.runs.finite import check_finite
from tllm_plugin.runs.reading import load_torch

_CHECKPOINT_PARTS = {"epoch", "config", "model", "optimizer", "schedule", "seconds_per_epoch", "rng"}
# Where a run logs, how it is named, where its data lie and how fast they are read. Of a reference the detector's
# checkpoint knows the content; its path may change.
_WITHOUT_EFFECT = {
    *("LOG", "EXPERIMENT.NAME", "EXPERIMENT.TAG", "EXPERIMENT.PROJECT"),
    *("DATASET.PATH", "DATASET.DOWNLOAD", "DATASET.NUM_WORKERS"),
    "TLLM.DETECTOR.REFERENCE",
}


def read_checkpoint(path: Path, cfg: CfgNode) -> Mapping[str, Any]:
    """Read what `BaseTrainer.save_checkpoint` wrote as `latest`.

    Raises:
        FileFormatError: It is missing or damaged.
        ConfigError: It was written under a config other than `cfg`.
    """
    state = read_state(path)
    changed = changed_keys(recorded_config(state["config"]), cfg)
    if changed:
        raise ConfigError(
            f"Expected the config that {path} was written under, but these keys differ: {', '.join(changed)}; "
            "resume with the same config and overrides, or give the run another EXPERIMENT.NAME"
        )
    return state


def read_state(path: Path) -> Mapping[str, Any]:
    """Read a checkpoint whatever its config.

    Raises:
        FileFormatError: It is missing or damaged, or has weights that are not finite.
    """
    state = load_torch(path, "a checkpoint to resume from")
    if not isinstance(state, Mapping) or not set(state) >= _CHECKPOINT_PARTS:
        raise FileFormatError(f"Expected {path} to be a checkpoint of the embedded host, but parts are missing")
    check_finite({name: state[name] for name in ("model", "optimizer")}, path)
    return state


@lru_cache(maxsize=64)  # A search compares the same runs again and again, and YAML is slow.
def recorded_config(text: str) -> CfgNode:
    """Return the config that a run has written down, frozen; keys that came into being later have their defaults.

    `TLLM.BALANCE` is False there: no run was balanced before there was that key.

    Raises:
        ConfigError: It is no YAML, has no sections, or a value where a section belongs, or the other way round.
    """
    content = plain(read_yaml(text))
    if not isinstance(content, dict) or not content:
        raise ConfigError("Expected sections with keys, but there are none")
    recorded = default_config()
    recorded.TLLM.BALANCE = False
    _update(recorded, CfgNode(renamed(content)))
    recorded.freeze()
    return recorded


def _update(cfg: CfgNode, other: CfgNode, prefix: str = "") -> None:
    for key, value in other.items():
        known, is_section = cfg.get(key), isinstance(value, CfgNode)
        if key in cfg and isinstance(known, CfgNode) != is_section:
            wanted = "a section" if isinstance(known, CfgNode) else "a value"
            raise ConfigError(f"Expected `{prefix}{key}` to be {wanted}, but it is not")
        if key in cfg and is_section:
            _update(known, value, f"{prefix}{key}.")
        else:
            cfg[key] = value


def changed_keys(old: CfgNode, new: CfgNode, prefix: str = "") -> list[str]:
    """Return the dotted keys in which two configs differ, but for those that no result depends on."""
    changed = []
    for key in sorted(set(old) | set(new)):
        name = f"{prefix}{key}"
        if name in _WITHOUT_EFFECT:
            continue
        before, now = old.get(key), new.get(key)
        if isinstance(before, CfgNode) and isinstance(now, CfgNode):
            changed += changed_keys(before, now, f"{name}.")
        elif _as_written(before) != _as_written(now):
            changed.append(name)
    return changed


def _as_written(value: Any) -> Any:
    """Return a value of a config as it comes back from YAML, which turns tuples into lists."""
    return [_as_written(item) for item in value] if isinstance(value, (tuple, list)) else value
