"""The scripts of `docs/own_loop.md`, run as they stand there but for the number of epochs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs/own_loop.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```", PAGE, re.M | re.S))
EPOCHS = 2


def run_script(name: str, folder: Path) -> str:
    """Run a script of the page in a folder with fewer epochs; return what it printed."""
    text, changed = re.subn(r"^EPOCHS = \d+$", f"EPOCHS = {EPOCHS}", SCRIPTS[name], flags=re.M)
    assert changed == 1
    (folder / name).write_text(text, encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, name], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_plain_pytorch(tmp_path: Path) -> None:
    printed = run_script("plain.py", tmp_path)
    assert printed.count("2 of 2 epochs") == 3
    kd = load_run(tmp_path / "runs/kd-tllm")
    assert kd.method == "TLLM (KD)" and kd.flags is not None and kd.curves is not None and kd.curves.epochs == [1, 2]
    assert main(["compare", str(tmp_path / "runs/vanilla"), str(tmp_path / "runs/kd-tllm")]) == 0
    # Once more: there is nothing left to train, and the results are the same.
    assert run_script("plain.py", tmp_path) == printed
