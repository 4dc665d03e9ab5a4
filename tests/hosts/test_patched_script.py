"""A train script of mdistiller with our patch in it: run as its users run it, from anywhere, without PYTHONPATH."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hosts.mdistiller_stand_in import CONFIG, write_host
from tllm_plugin.hosts.checkouts import patches
from tllm_plugin.runs.run_folder import RunFolder

SCRIPT, DATASET = "tools/train.py", "mdistiller/dataset/__init__.py"


def added_lines() -> list[list[str]]:
    """Return the lines that patch 0001 adds to the host's script, group by group."""
    groups: list[list[str]] = [[]]
    for line in patches("mdistiller")[0].read_text(encoding="utf-8").partition("diff --git")[2].splitlines():
        if line.startswith("+") and not line.startswith("+++"):
            groups[-1].append(line[1:])
        elif groups[-1]:
            groups.append([])
    return [group for group in groups if group]


@pytest.fixture
def patched(tmp_path: Path) -> Path:
    """The stand-in with the lines of the patch in its script."""
    path, epilog, after_parsing, before_freezing = ("\n".join(group) + "\n" for group in added_lines())
    edits = [
        ("import argparse, numpy, os, random, torch\n", f"import argparse, numpy, os, random, torch\n{path}"),
        ("    args = parser.parse_args()\n", f"{epilog}    args = parser.parse_args()\n{after_parsing}"),
        ("    cfg.freeze()\n", f"{before_freezing}    cfg.freeze()\n"),
    ]
    return write_host(tmp_path / "host", {SCRIPT: edits}, CONFIG)


def start(root: Path, *words: str, inside: Path) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    # Only this package, which may be a work tree that is not installed; the host's is for the script to find.
    env |= {"PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    command = [sys.executable, str(root / SCRIPT), *words]
    return subprocess.run(command, cwd=inside, env=env, capture_output=True, text=True)


def test_its_help_mentions_tllm(patched: Path, tmp_path: Path) -> None:
    done = start(patched, "--help", inside=tmp_path)
    assert done.returncode == 0 and "TLLM.ON True" in " ".join(done.stdout.split())


def test_it_finds_its_own_package_and_trains(patched: Path, tmp_path: Path) -> None:
    # Another mdistiller that lies where it is started.
    other = tmp_path / "elsewhere" / "mdistiller"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('the wrong one')\n")
    done = start(patched, "--cfg", str(patched / "run.yaml"), inside=other.parent)
    assert done.returncode == 0, done.stderr[-2000:]
    (path,) = other.parent.rglob("flags.json")
    assert RunFolder(path.parent).read_flags().flagged == (1, 3)


def test_images_that_are_not_there_are_one_line(patched: Path, tmp_path: Path) -> None:
    (patched / "mdistiller" / "dataset" / "imagenet.py").write_text(
        "import os\ndata_folder = os.path.join(os.path.dirname(__file__), '../../data/imagenet')\n"
    )
    words = ("--cfg", str(patched / "run.yaml"), "DATASET.TYPE", "imagenet")
    done = start(patched, *words, inside=tmp_path)
    assert done.returncode == 1
    expected = (
        f"Expected the images of `DATASET.TYPE` imagenet in {patched / 'data' / 'imagenet'}, but there is no such"
    )
    (line,) = [line for line in done.stderr.splitlines() if "Expected" in line]
    assert line.startswith(f"tllm: {expected} folder")
    assert "Traceback" not in done.stderr
    (patched / "data" / "imagenet").mkdir(parents=True)
    assert start(patched, *words, inside=tmp_path).returncode == 0
