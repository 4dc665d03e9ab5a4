"""Runs of the real mdistiller in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.hosts.mdistiller.conftest import environment
from tllm_plugin.hosts import checkouts

BASE = """
EXPERIMENT: {PROJECT: "p", TAG: "t"}
DATASET: {TYPE: "tiny_imagenet", NUM_WORKERS: 0, TEST: {BATCH_SIZE: 16}}
DISTILLER: {TYPE: "KD", TEACHER: "resnet20", STUDENT: "resnet8"}
SOLVER: {BATCH_SIZE: 16, EPOCHS: 3, LR: 0.05, LR_DECAY_STAGES: [1], TRAINER: "tllm"}
LOG: {SAVE_CHECKPOINT_FREQ: 1}
CRD: {FEAT: {DIM: 8, STUDENT_DIM: 64, TEACHER_DIM: 64}, NCE: {K: 4}}
FITNET: {INPUT_SIZE: [32, 32]}
REVIEWKD: {SHAPES: [1, 8, 16, 32], OUT_SHAPES: [1, 8, 16, 32], IN_CHANNELS: [16, 32, 64, 64],
           OUT_CHANNELS: [16, 32, 64, 64], WARMUP_EPOCHS: 2}
DKD: {WARMUP: 2}
TLLM:
  HOLDOUT: {FRACTION: 0.25}
  DETECTOR: {TYPE: "reference", SCORE: "reciprocal_rank", WARMUP_EPOCHS: 0, CONFIDENCE: 0.0, ETA: 0.01, SMOOTHING: 0.0}
"""


def seeded(root: Path) -> None:
    """Make the copy's script draw the same numbers in every process; the host has no seed of its own.

    Nor does it ask for the same sums on a GPU, where it takes whichever algorithm is the fastest.
    """
    script = root / "tools" / "train.py"
    begin = (
        "import os; os.environ['CUBLAS_WORKSPACE_CONFIG'] = ':4096:8'",
        "import random, numpy, torch; random.seed(0); numpy.random.seed(0); torch.manual_seed(0)",
        "torch.use_deterministic_algorithms(True, warn_only=True)",
    )
    host = script.read_text().replace("cudnn.benchmark = True", "cudnn.benchmark = False")
    script.write_text("\n".join((*begin, host)))


def train(
    root: Path, *options: str, resume: bool = False, script: bool = False, check: bool = True, base: str = BASE
) -> Any:
    """Run `tllm train --host mdistiller`, or the host's own script, and return the finished process."""
    (root / "base.yaml").write_text(base)
    start = ["tools/train.py"] if script else ["-m", "tllm_plugin", "train", "--host", "mdistiller"]
    more = ["--resume"] if resume else []
    done = subprocess.run(
        [sys.executable, *start, "--cfg", str(root / "base.yaml"), *more, *options],
        cwd=root,
        env=environment(root),
        capture_output=True,
        text=True,
    )
    assert not check or done.returncode == 0, done.stderr[-3000:]
    return done


def apply_patch(root: Path, number: str) -> None:
    """Apply the one patch of ours whose name begins with `number` to a copy of the checkout."""
    (patch,) = [path for path in checkouts.patches("mdistiller") if path.name.startswith(number)]
    subprocess.run(["git", "init", "-q"], cwd=root, check=True)
    done = subprocess.run(["git", "apply", "--recount", str(patch)], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
