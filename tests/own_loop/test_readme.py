"""README's loop, run as its text stands there: to its end, and killed in an epoch and started again."""

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
from tllm_plugin.analysis.loaded_run import load_run

ROOT = Path(__file__).resolve().parents[2]
_BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(encoding="utf-8"), re.M | re.S)
LOOP = next(block for block in _BLOCKS if "tllm.Session(" in block)
#: What the text leaves to the reader. The process kills itself at a whole batch that its teacher sees; 0 for never.
READERS_OWN = """
import os, random, signal, sys
import numpy, torch
from tests.own_loop.digits import digits, student, teacher
batches = int(sys.argv[1])
device = torch.device("cpu")
random.seed(0), numpy.random.seed(0)
train_set, test_set = digits("train"), digits("test")
student, teacher = student(), teacher()
optimizer = torch.optim.SGD(student.parameters(), lr=0.05, momentum=0.9)
scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3)

def count(module, args):
    global batches
    batches -= len(args[0]) == 128
    if batches == 0 and len(args[0]) == 128:
        os.kill(os.getpid(), signal.SIGKILL)

teacher.register_forward_pre_hook(count)
"""


def sized(text: str, *, vanilla: bool) -> str:
    """Return README's text with the digits' sizes in it; every replacement must have something to replace."""
    changes = [
        ("epochs=100", "epochs=3, holdout_fraction=0.15, warmup_epochs=0"),
        ("num_workers=8", "num_workers=1"),
    ]
    if vanilla:
        changes += [
            ("tllm.KD(student, teacher, temperature=4)", "tllm.Vanilla(student)"),
            ('run="runs/kd-tllm", reference="runs/vanilla"', 'run="runs/vanilla", detector="none"'),
        ]
    for old, new in changes:
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    return text


def run(folder: Path, text: str, kill_at: int = 0) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "loop.py").write_text(READERS_OWN + text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "loop.py", str(kill_at)], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("readme")
    assert run(folder / "whole", sized(LOOP, vanilla=True)) == 0
    return folder


def test_readmes_loop_continues_after_a_kill_as_if_there_had_been_none(runs: Path) -> None:
    text = sized(LOOP, vanilla=False)
    whole, killed = runs / "whole", runs / "killed"
    killed.mkdir()
    (killed / "runs").mkdir()
    os.symlink(whole / "runs/vanilla", killed / "runs/vanilla")
    assert run(whole, text) == 0
    # The teacher sees 7 whole batches in an epoch and one of the hold-out after the first: this is in the second epoch.
    assert run(killed, text, kill_at=12) == -signal.SIGKILL
    state = torch.load(killed / "runs/kd-tllm/latest", weights_only=True)
    assert state["epoch"] == 1 and not (killed / "runs/kd-tllm/tllm/predictions.npz").exists()
    assert run(killed, text) == 0
    states = [torch.load(folder / "runs/kd-tllm/latest", weights_only=True) for folder in (whole, killed)]
    for state in states:
        state.pop("seconds_per_epoch")
    assert_equal(states[0], states[1])
    for name in ("curves.npz", "flags.json", "predictions.npz"):
        one, other = ((folder / "runs/kd-tllm/tllm" / name).read_bytes() for folder in (whole, killed))
        assert one == other, name
    assert load_run(whole / "runs/kd-tllm").method == "TLLM (KD)"
