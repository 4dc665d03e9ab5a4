"""The scripts of `docs/own_loop.md`, run as they stand there with fewer epochs: whole, and killed in an epoch."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.hosts.digits_runs import assert_equal
from tests.own_loop.digits import kd
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/own_loop.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.M | re.S))
EPOCHS, STEPS = 2, 16
#: Kills its process in the training step of this number.
KILLER = """
import os, signal
from tllm_plugin.core.wrapper import TLLMWrapper

forward, left = TLLMWrapper.forward, [{step}]

def counted(self, *args, **kwargs):
    left[0] -= self.training
    if left[0] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return forward(self, *args, **kwargs)

TLLMWrapper.forward = counted
"""


def run_script(name: str, folder: Path, kill_at: int = 0) -> str:
    """Run a script of the page in a folder with fewer epochs; return what it printed."""
    text, changed = re.subn(r"^EPOCHS = \d+$", f"EPOCHS = {EPOCHS}", SCRIPTS[name], flags=re.M)
    assert changed == 1
    folder.mkdir(exist_ok=True)
    (folder / name).write_text((KILLER.format(step=kill_at) if kill_at else "") + text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == (-signal.SIGKILL if kill_at else 0), done.stderr
    return done.stdout


def assert_same_runs(one: Path, other: Path) -> None:
    """Check that two runs left the same behind, but for times and the random numbers that no script seeded."""
    states = [torch.load(run / "latest", weights_only=True) for run in (one, other)]
    for name in ("epoch", "config", "model", "optimizer", "scheduler"):
        assert_equal(states[0][name], states[1][name], name)
    for name in ("curves.npz", "flags.json", "predictions.npz"):
        assert (one / "tllm" / name).read_bytes() == (other / "tllm" / name).read_bytes(), name


def test_pieces() -> None:
    flags = torch.arange(10) == 3
    names = {
        "labels": torch.arange(10).repeat(100),
        "distiller": kd(),
        "flags": flags,
        "weights": torch.full((10,), 0.5),
    }
    exec(SCRIPTS["pieces.py"], names)
    assert len(names["parts"].holdout) == 100 and names["wrapper"].teaching_weights.eq(0.5).all()


def test_plain_pytorch(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    printed = run_script("plain.py", whole)
    assert printed.count("2 of 2 epochs") == 3
    kd = load_run(whole / "runs/kd-tllm")
    assert kd.method == "TLLM (KD)" and kd.flags is not None and kd.curves is not None and kd.curves.epochs == [1, 2]
    assert main(["compare", str(whole / "runs/vanilla"), str(whole / "runs/kd-tllm")]) == 0
    # In the second epoch of the third session.
    run_script("plain.py", killed, kill_at=5 * STEPS + 4)
    assert torch.load(killed / "runs/kd-tllm/latest", weights_only=True)["epoch"] == 1
    assert run_script("plain.py", killed) == printed
    assert_same_runs(whole / "runs/kd-tllm", killed / "runs/kd-tllm")


@pytest.mark.parametrize(
    "name, libraries",
    [
        ("timm_loop.py", ["timm"]),
        ("lightning_loop.py", ["lightning"]),
        ("hf_loop.py", ["transformers", "accelerate"]),
    ],
)
def test_other_libraries(name: str, libraries: list[str], tmp_path: Path) -> None:
    for library in libraries:
        pytest.importorskip(library, reason=f"{library} is not installed: pip install '.[recipes]'")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert "2 of 2 epochs" in run_script(name, whole)
    run_script(name, killed, kill_at=STEPS + 4)
    assert torch.load(killed / "runs/kd/latest", weights_only=True)["epoch"] == 1
    run_script(name, killed)
    assert_same_runs(whole / "runs/kd", killed / "runs/kd")
    assert load_run(killed / "runs/kd").method == "TLLM (KD)"
