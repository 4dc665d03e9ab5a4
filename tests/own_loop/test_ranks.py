"""A session in two processes: what they share, and that they continue exactly; in one process of a launcher's two."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import TensorDataset

from tests.hosts.digits_runs import assert_equal
from tests.hosts.together import start
from tests.own_loop.digits import HOLDOUT, vanilla
from tllm_plugin import ConfigError, Session
from tllm_plugin.core.holdout import split
from tllm_plugin.core.predictions import predict
from tllm_plugin.runs.run_folder import RunFolder

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="this PyTorch has no torch.distributed"),
    pytest.mark.xdist_group("session ranks"),
]
JOB = Path(__file__).with_name("rank_job.py")
LONGEST_SECONDS = 300


def run(folder: Path, *stops: int) -> list[dict[str, Any]]:
    """Run the job in two processes; return what each of them saved."""
    folder.mkdir()
    together = start(str(JOB), str(folder), *map(str, stops), folders=[folder, folder])
    errors = [process.communicate(timeout=LONGEST_SECONDS)[1] for process in together]
    assert [process.returncode for process in together] == [0, 0], "\n".join(errors)
    return [torch.load(folder / f"rank{rank}.pt") for rank in (0, 1)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("ranks") / "whole"
    return folder, run(folder, 0)


def test_ranks_share_one_run(whole: tuple[Path, list[dict[str, Any]]], train_set: TensorDataset) -> None:
    folder, (first, second) = whole
    for name in ("prediction", "flags", "curves"):
        assert_equal(first[name], second[name], name)
    assert bool(first["flags"].any()), "nothing was flagged, so that nothing is shown"
    parts = split(train_set.tensors[1], 0.15, seed=0)
    # A sampler of PyTorch's repeats a row where they are odd.
    assert len(first["seen"]) == len(second["seen"]) == -(-len(parts.train) // 2)
    assert sorted({*first["seen"], *second["seen"]}) == parts.train.tolist()
    weights = [
        {name: value for name, value in rank["student"].items() if "running" not in name} for rank in (first, second)
    ]
    assert_equal(*weights)
    # Independent: one process asks the student that was saved about the whole hold-out.
    student = vanilla().student
    student.load_state_dict(torch.load(folder / "run/student_latest", weights_only=True)["model"])
    asked = predict(student, [(train_set.tensors[0][parts.holdout], train_set.tensors[1][parts.holdout])])
    assert torch.equal(first["curves"]["rank"][-1], asked.kept("rank"))
    assert RunFolder.find(folder / "run").is_finished()


def test_ranks_continue_exactly(whole: tuple[Path, list[dict[str, Any]]], tmp_path: Path) -> None:
    """With `DistributedDataParallel` around the distiller before the session, too."""
    for one, other in zip(whole[1], run(tmp_path / "parts", 1, 0), strict=True):
        assert_equal(one, other)


def test_a_launcher_without_a_process_group(train_set: TensorDataset, tmp_path: Path) -> None:
    script = (
        f"from tests.own_loop.digits import *\nSession(vanilla(), digits('train'), epochs=1, run={str(tmp_path)!r})"
    )
    environment = {**os.environ, "RANK": "0", "WORLD_SIZE": "2", "PYTHONPATH": str(JOB.parents[2])}
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode and "call `torch.distributed.init_process_group()` before the session" in done.stderr


def test_two_processes_at_one_run(train_set: TensorDataset, tmp_path: Path) -> None:
    script = f"""
from tests.own_loop.digits import *
session = Session(vanilla(), digits('train'), epochs=1, run={str(tmp_path / "run")!r}, detector="none", **HOLDOUT)
for epoch in session.epochs():
    print("begun", flush=True)
    input()
"""
    environment = {**os.environ, "PYTHONPATH": str(JOB.parents[2]), "OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    other = subprocess.Popen([sys.executable, "-c", script], env=environment, text=True, **pipes)
    try:
        assert other.stdout is not None and other.stdout.readline() == "begun\n"
        session = Session(vanilla(), train_set, epochs=1, run=tmp_path / "run", detector="none", **HOLDOUT)
        with pytest.raises(ConfigError, match="to train .* alone, but another command is at it"):
            next(session.epochs())
    finally:
        other.kill()
        other.communicate()
    assert next(session.epochs()) == 1
