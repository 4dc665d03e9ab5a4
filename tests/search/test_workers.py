"""Two worker processes share a search, and one of them is killed in the middle of a trial."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from optuna.trial import TrialState

from tests.hosts.conftest import Trained, trained  # noqa: F401  (fixture)
from tests.hosts.digits_runs import BASE, CONFIG, assert_same_run, make_config, train
from tests.search.staged import SAVING
from tllm_plugin.cli.search import parse_space
from tllm_plugin.runs.run_folder import read_search
from tllm_plugin.search.embedded import EmbeddedSearch
from tllm_plugin.search.host import around_digest
from tllm_plugin.search.study import SharedStudy

ROOT = Path(__file__).resolve().parents[2]
SPACE = "AFTER_FRACTION=0.2,0.4,0.6"
DEADLINE_SECONDS = 300


def test_a_killed_worker_is_made_up_for(trained: Trained, tmp_path: Path) -> None:  # noqa: F811
    options = ("SOLVER.EPOCHS", "10", *trained.taught, "TLLM.DETECTOR.TYPE", "after")
    options = (*options, "TLLM.HOLDOUT.SEARCH_FRACTION", "0.1")
    cfg = make_config(tmp_path, *options)
    space, _ = parse_space([SPACE], cfg)
    plan = EmbeddedSearch(cfg, space)
    words = ["search", "--cfg", str(CONFIG), "--space", SPACE, *BASE, "LOG.PREFIX", str(tmp_path), *options]
    command = [sys.executable, "-m", "tllm_plugin", *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    logs = [(tmp_path / f"worker-{number}").open("w") for number in range(2)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log) for log in logs
    ]
    try:
        study = SharedStudy("", plan.folder, space, around=around_digest(plan.cfg, space))
        victim = kill_one_at_work(study, plan, workers)
        survivor = next(worker for worker in workers if worker is not victim)
        assert survivor.wait(DEADLINE_SECONDS) == 0, (tmp_path / f"worker-{workers.index(survivor)}").read_text()
    finally:
        for worker, log in zip(workers, logs, strict=True):
            worker.kill()
            worker.wait()
            log.close()
    done = study.finished()
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 3
    assert sum(trial.user_attrs.get("takeovers", 0) for trial in done) == 1
    assert len({trial.user_attrs["worker"] for trial in done}) <= 2
    record = read_search(plan.folder / f"search-{study.name}.json")
    assert [trial.score for trial in record.trials] == [trial.value for trial in done]
    taken_over = next(trial for trial in done if trial.user_attrs.get("takeovers"))
    fraction = str(taken_over.params["TLLM.DETECTOR.AFTER_FRACTION"])
    alone = train(tmp_path / "alone", *options, "TLLM.DETECTOR.AFTER_FRACTION", fraction, *SAVING)
    assert_same_run(alone, plan.run_of(taken_over.params), untested=True)
    assert not list(plan.folder.glob("workers/*"))


def kill_one_at_work(
    study: SharedStudy, plan: EmbeddedSearch, workers: list[subprocess.Popen[bytes]]
) -> subprocess.Popen[bytes]:
    """Kill, by SIGKILL, a worker that is in the middle of training a trial, and return it."""
    by_process = {str(worker.pid): worker for worker in workers}
    give_up = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < give_up:
        assert all(worker.poll() is None for worker in workers), "a worker ended by itself"
        for trial in study._under_way():
            worker = by_process.get(trial.user_attrs.get("worker", "--").split("-")[-2])
            if worker is None or not (plan.run_of(trial.params).log_folder / "latest").exists():
                continue
            # Stopped first, so that it cannot finish between the look and the kill.
            os.kill(worker.pid, signal.SIGSTOP)
            unfinished = not plan.run_of(trial.params).is_finished()
            if unfinished and trial.number in [item.number for item in study._under_way()]:
                worker.kill()
                worker.wait()
                return worker
            os.kill(worker.pid, signal.SIGCONT)
        time.sleep(0.02)
    raise AssertionError("no worker was seen at work")
