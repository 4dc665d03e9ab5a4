"""Kill training processes at random steps, resume them, and count how many end as if nothing had happened.

    python benchmarks/kill_resume.py --kills 100

One run on the digits, KD with a detector that flags classes on the way, is trained to its end. Then, again and again,
the same run is started in a process of its own, which gets SIGKILL after a random optimizer step (one time in five:
half-way through a random write of a file instead), and is resumed in another process. Weights, optimizer, random
numbers, curves, flags, metrics and the best student on the hold-out, after every checkpoint that is kept, are compared
bit for bit; only times and memory may differ.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import register_optimizer_step_post_hook

import tllm_plugin.runs.atomic as atomic
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.runs.run_folder import RunFolder

CONFIG = "tllm/embedded/digits.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0, help="of the kills")
    parser.add_argument("--save-seconds", default="0", help="LOG.SAVE_SECONDS; checkpoints of every second epoch stay")
    options = parser.parse_args()
    started = time.perf_counter()
    with TemporaryDirectory() as folder:
        where, equal = run_all(Path(folder), options)
    for kind, count in where.items():
        print(f"killed {kind}: {count}")
    print(f"{equal} of {options.kills} resumed runs equal the uninterrupted one, bit for bit")
    print(f"{time.perf_counter() - started:.0f} s, torch {torch.__version__}")
    raise SystemExit(0 if equal == options.kills else 1)


def run_all(folder: Path, options: argparse.Namespace) -> tuple[dict[str, int], int]:
    """Return how often was killed where, and how many runs were equal in the end."""
    vanilla = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none")
    base = ("SOLVER.EPOCHS", str(options.epochs), "TLLM.DETECTOR.WARMUP_EPOCHS", "0")
    base = (*base, "LOG.SAVE_SECONDS", options.save_seconds, "LOG.SAVE_CHECKPOINT_FREQ", "2")
    prerequisites = folder / "prerequisites"
    in_process(train, (*base, "EXPERIMENT.NAME", "t", *vanilla, "DISTILLER.STUDENT", "digits_teacher"), prerequisites)
    in_process(train, (*base, "EXPERIMENT.NAME", "v", *vanilla), prerequisites)
    detecting = (
        *base,
        *("DISTILLER.TEACHER_CHECKPOINT", str(prerequisites / "digits/t/student_latest")),
        *("TLLM.DETECTOR.REFERENCE", str(prerequisites / "digits/v")),
        *("TLLM.DETECTOR.ETA", "0.01", "TLLM.DETECTOR.FDR", "1", "TLLM.DETECTOR.SMOOTHING", "0"),
        *("EXPERIMENT.NAME", "run"),
    )
    counts = folder / "counts.json"
    in_process(train_and_count, detecting, folder / "whole", counts)
    steps, writes = json.loads(counts.read_text())
    whole = RunFolder.find(folder / "whole/digits/run")
    flagged = {item.epoch_flagged or 0 for item in whole.read_flags().classes if item.flagged}
    print(f"{steps} steps and {writes} writes per run; classes flagged after epochs {sorted(flagged)}")
    expected = left_behind(whole)
    random = np.random.default_rng(options.seed)
    where = {"after an optimizer step": 0, "half-way through a write": 0, "before the first checkpoint": 0}
    equal = 0
    for kill in range(options.kills):
        prefix = folder / f"kill-{kill}"
        writing = random.random() < 0.2
        moment = int(random.integers(1, (writes if writing else steps) + 1))
        exit_code = in_process(train_and_die, detecting, prefix, moment, writing)
        assert exit_code == -signal.SIGKILL, f"kill {kill}: the process ended by itself with {exit_code}"
        where["half-way through a write" if writing else "after an optimizer step"] += 1
        resume = (prefix / "digits/run/latest").exists()
        where["before the first checkpoint"] += not resume
        code = in_process(train, detecting, prefix, resume)
        same = code == 0 and equal_contents(left_behind(RunFolder.find(prefix / "digits/run")), expected)
        equal += same
        if not same:
            print(f"kill {kill}, {'write' if writing else 'step'} {moment}: differs (exit code {code})")
    return where, equal


def in_process(target: Any, *arguments: Any) -> int:
    """Run in a forked process, which saves importing torch; the parent never computes with it, nor touches a GPU."""
    process = multiprocessing.get_context("fork").Process(target=target, args=arguments)
    process.start()
    process.join()
    return int(process.exitcode or 0)


def train(options: tuple[str, ...], prefix: Path, resume: bool = False) -> None:
    torch.set_num_threads(1)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # progress bars
    recipe.run(load_config(CONFIG, [*options, "LOG.PREFIX", str(prefix)]), resume=resume)


def train_and_count(options: tuple[str, ...], prefix: Path, counts: Path) -> None:
    """Train, and write how many optimizer steps and file writes that took."""
    seen = {"steps": 0, "writes": 0}
    on_every_step(lambda: seen.update(steps=seen["steps"] + 1))
    on_every_write(lambda path, data: seen.update(writes=seen["writes"] + 1))
    train(options, prefix)
    counts.write_text(json.dumps([seen["steps"], seen["writes"]]))


def train_and_die(options: tuple[str, ...], prefix: Path, moment: int, writing: bool) -> None:
    """Train and die by SIGKILL after the `moment`-th step, or half-way through the `moment`-th write."""
    seen = [0]

    def step() -> None:
        seen[0] += 1
        if seen[0] == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def write(path: Any, data: Any) -> None:
        seen[0] += 1
        if seen[0] == moment:
            with atomic.atomic_writer(path) as file:
                file.write(data[: len(data) // 2])
                file.flush()
                os.kill(os.getpid(), signal.SIGKILL)

    if writing:
        on_every_write(write)
    else:
        on_every_step(step)
    train(options, prefix)


def on_every_step(act: Any) -> None:
    """Call `act()` after every optimizer step of this process."""
    register_optimizer_step_post_hook(lambda *_: act())


def on_every_write(act: Any) -> None:
    """Call `act(path, data)` before every atomic write of this process."""
    original = atomic.write_bytes

    def write_bytes(path: Any, data: Any) -> None:
        act(path, data)
        original(path, data)

    atomic.write_bytes = write_bytes


def left_behind(run: RunFolder) -> dict[str, Any]:
    """Return everything that a run must reproduce."""
    latest = torch.load(run.log_folder / "latest", map_location="cpu", weights_only=True)
    metrics = json.loads(run.metrics_json.read_text())
    del latest["seconds_per_epoch"], latest["config"], metrics["seconds_per_epoch"], metrics["peak_memory_bytes"]
    del metrics["digest"]  # Of these, too.
    files = {path.name: path.read_bytes() for path in (run.curves_npz, run.flags_json, run.split_json)}
    students = {
        path.name: torch.load(path, map_location="cpu", weights_only=True)
        for path in (run.log_folder / "student_latest", *sorted(run.path.glob("student_best_holdout*")))
    }
    return {"latest": latest, "students": students, "metrics": metrics, "files": files}


def equal_contents(one: Any, other: Any) -> bool:
    """Tell whether two nests of mappings, sequences and tensors are equal bit for bit; NaN equals NaN."""
    if type(one) is not type(other):
        return False
    if isinstance(one, Mapping):
        return list(one) == list(other) and all(equal_contents(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal_contents, one, other))
    if isinstance(one, Tensor):
        return (
            one.dtype == other.dtype and one.shape == other.shape and one.numpy().tobytes() == other.numpy().tobytes()
        )
    return bool(one == other)


if __name__ == "__main__":
    main()
