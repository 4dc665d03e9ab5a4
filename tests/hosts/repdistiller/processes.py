"""Train scripts in processes of their own: run, killed, and compared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from tests.hosts.digits_runs import assert_equal
from tests.hosts.small_images import CLASSES
from tllm_plugin.hosts.checkouts import patches
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder

LAUNCHER = ("-m", "tllm_plugin", "train", "--host", "repdistiller", "--")
SHORT = ("--batch_size", "16", "--num_workers", "0", "--model_s", "resnet8", "--init_epochs", "1", "--nce_k", "4")


def save_teacher(folder: Path, network: torch.nn.Module, name: str) -> Path:
    """Save a random teacher where the host's scripts would have, and return the file."""
    path = folder / f"{name}_random" / "last.pth"
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": network.state_dict()}, path)
    return path


def python(cwd: Path, env: dict[str, str], *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    cwd.mkdir(exist_ok=True)
    done = subprocess.run([sys.executable, *words], cwd=cwd, env=env, capture_output=True, text=True)
    assert not check or done.returncode == 0, done.stderr[-3000:] + done.stdout[-1000:]
    return done


# Imported by Python when it starts: the process kills itself, without a chance to clean up, once it has printed a text.
# Killing it from here would race with what it does next.
_KILLER = """
import builtins, os, signal
show = builtins.print
def print_and_die(*words, **options):
    show(*words, **options)
    if words and {text!r} in str(words[0]):
        os.kill(os.getpid(), signal.SIGKILL)
builtins.print = print_and_die
"""


def kill_when(text: str, cwd: Path, env: dict[str, str], *words: str) -> None:
    """Start a script that is killed when it prints a line that holds `text`."""
    cwd.mkdir(exist_ok=True)
    killer = cwd / "killer"
    killer.mkdir()
    (killer / "sitecustomize.py").write_text(_KILLER.format(text=text))
    path = os.pathsep.join([str(killer), *filter(None, [env.get("PYTHONPATH")])])
    done = python(cwd, {**env, "PYTHONPATH": path}, *words, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]


def only_run(folder: Path) -> RunFolder:
    """Return the one run with TLLM below a folder."""
    (found,) = folder.rglob("split.json")
    return RunFolder(found.parent)


def state_of(run: RunFolder) -> dict[str, Any]:
    """Return a run's checkpoint without what differs from time to time."""
    state: dict[str, Any] = torch.load(run.state, weights_only=True)
    state.pop("seconds")
    return state


def assert_same_results(one: RunFolder, other: RunFolder) -> None:
    """Check that two runs left the same behind, but for times, memory and paths."""
    states = state_of(one), state_of(other)
    for state in states:
        del state["options"]["tllm_resume"]
    assert_equal(*states)
    for name in ("flags_json", "curves_npz", "split_json"):
        assert getattr(one, name).read_bytes() == getattr(other, name).read_bytes(), name
    metrics = [json.loads(run.metrics_json.read_text()) for run in (one, other)]
    for content in metrics:
        assert len(content.pop("seconds_per_epoch")) == content["epochs_done"] and content["finished"]
        content.pop("peak_memory_bytes")
        content.pop("digest")
    assert metrics[0] == metrics[1]
    for pattern in ("*best.pth", "*last.pth"):
        found = [torch.load(next(run.log_folder.glob(pattern)), weights_only=True) for run in (one, other)]
        assert_equal(found[0]["model"], found[1]["model"], pattern)


def apply_patches(root: Path, *numbers: str) -> None:
    """Apply our patches (all, or those whose names begin with `numbers`) to a copy of the checkout."""
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    for patch in patches("repdistiller"):
        if patch.name.startswith(numbers or ""):
            done = subprocess.run(["git", "apply", str(patch)], cwd=root, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr


def images(tmp_path: Path) -> tuple[str, ...]:
    """Return the arguments that name the small images below `tmp_path`."""
    return ("--dataset", "imagefolder", "--data_folder", str(tmp_path / "images"))


def teacher(tmp_path: Path, classes: int = CLASSES, name: str = "resnet14") -> str:
    """Save a random teacher, the same in every call, and return its file."""
    torch.manual_seed(1)
    return str(save_teacher(tmp_path, create_model(name, num_classes=classes), name))
