"""Small runs on the digits, shared by the tests of the embedded host."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from yacs.config import CfgNode

from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.runs.run_folder import RunFolder

CONFIG = Path(__file__).resolve().parents[2] / "configs/tllm/embedded/digits.yaml"
EPOCHS = 3
HOLDOUT_FRACTION = 0.15  # 18 images per class
BASE = (
    *("SOLVER.EPOCHS", str(EPOCHS)),
    *("TLLM.HOLDOUT.FRACTION", str(HOLDOUT_FRACTION)),
    *("TLLM.DETECTOR.WARMUP_EPOCHS", "0"),
)


def make_config(prefix: Path | str, *options: str) -> CfgNode:
    """Return the digits config with few epochs, logging below `prefix`."""
    return load_config(CONFIG, [*BASE, "LOG.PREFIX", str(prefix), *options])


def train(prefix: Path | str, *options: str, **how: bool) -> RunFolder:
    """Train `make_config(prefix, *options)`."""
    return recipe.run(make_config(prefix, *options), **how)


def load_latest(run: RunFolder) -> dict[str, Any]:
    """Return the last checkpoint of a run."""
    state: dict[str, Any] = torch.load(run.log_folder / "latest", map_location="cpu", weights_only=True)
    return state


def assert_equal(one: Any, other: Any, where: str = "") -> None:
    """Compare nested mappings, lists and tensors (of any device) bit for bit, NaN being equal to itself."""
    assert type(one) is type(other), where
    if isinstance(one, Mapping):
        assert list(one) == list(other), where
        for key in one:
            assert_equal(one[key], other[key], f"{where}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), where
        for place, (first, second) in enumerate(zip(one, other, strict=True)):
            assert_equal(first, second, f"{where}[{place}]")
    elif isinstance(one, Tensor):
        assert one.dtype == other.dtype and one.shape == other.shape, where
        one, other = one.cpu(), other.cpu()
        assert torch.equal(one.nan_to_num(-7.0), other.nan_to_num(-7.0)) if one.is_floating_point() else True, where
        assert torch.equal(one.isnan(), other.isnan()) if one.is_floating_point() else torch.equal(one, other), where
    else:
        assert one == other, where


def assert_same_run(one: RunFolder, other: RunFolder, *, untested: bool = False) -> None:
    """Check that two runs left the same behind, but for times, memory and where they logged.

    Args:
        one: A run that looked at test data.
        other: Another one.
        untested: Whether `other` must never have looked at test data.
    """
    states = [load_latest(run) for run in (one, other)]
    for state in states:
        state.pop("seconds_per_epoch")
        state.pop("config")
    assert_equal(states[0], states[1])
    for name in ("curves_npz", "flags_json", "split_json"):
        assert getattr(one, name).read_bytes() == getattr(other, name).read_bytes(), name
    metrics = [json.loads(run.metrics_json.read_text()) for run in (one, other)]
    for content in metrics:
        assert len(content.pop("seconds_per_epoch")) == content["epochs_done"]
        content.pop("peak_memory_bytes")
        content.pop("digest")
        assert content["finished"]
    assert one.predictions_npz.exists() and other.predictions_npz.exists() is not untested
    if untested:
        for name, nothing in (("test_accuracy", None), ("class_correct", []), ("class_total", [])):
            assert metrics[1].pop(name) == nothing != metrics[0].pop(name), name
    assert metrics[0] == metrics[1]
    for name in ("student_latest", "tllm/student_best_holdout"):
        assert_equal(*(torch.load(run.log_folder / name, weights_only=True) for run in (one, other)))


def interrupt_at(monkeypatch: pytest.MonkeyPatch, epoch: int, step: int) -> None:
    """Make the next run raise KeyboardInterrupt in a step, counted from 0 within its epoch."""
    original = BaseTrainer.train_iter
    steps = [0]

    def train_iter(self: BaseTrainer, image: Any, target: Any, index: Any, now: int) -> Any:
        if now == epoch:
            if steps[0] == step:
                raise KeyboardInterrupt
            steps[0] += 1
        return original(self, image, target, index, now)

    monkeypatch.setattr(BaseTrainer, "train_iter", train_iter)
