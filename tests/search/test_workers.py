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

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import BASE, CONFIG, assert_same_run, make_config, train
from tests.search.staged import SAVING
from tllm_plugin.cli.search import parse_space
from tllm_plugin.runs.search_file import SearchRecord
from tllm_plugin.search.embedded import EmbeddedSearch
from tllm_plugin.search.host import around_digest
from tllm_plugin.search.optuna_study import SharedStudy

ROOT = Path(__file__).resolve().parents[2]
SPACE = "AFTER_FRACTION=0.2,0.4,0.6"
DEADLINE_SECONDS = 300

# Works like `tllm search`. The first worker that has trained epoch 8 of a trial, when trials have parted, writes its
# process id to a file and waits to be killed: the epoch is logged, but not saved.
WAITING_IN_A_TRIAL = """
import os, sys, time
from pathlib import Path
from tllm_plugin.cli import main
from tllm_plugin.hosts.embedded.trainer import BaseTrainer

def log_and_wait(self, report):
    log(self, report)
    if report.epoch == 8 and Path(self.log_path).name.startswith("trial-"):
        try:
            with open(sys.argv[1], "x") as file:
                print(os.getpid(), file=file)
        except FileExistsError:
            return
        time.sleep(600)

log, BaseTrainer.log = BaseTrainer.log, log_and_wait
sys.exit(main(sys.argv[2:]))
"""


def test_a_killed_worker_is_made_up_for(trained: Trained, tmp_path: Path) -> None:
    options = ("SOLVER.EPOCHS", "10", *trained.taught, "TLLM.DETECTOR.TYPE", "after")
    options = (*options, "TLLM.HOLDOUT.SEARCH_FRACTION", "0.1")
    cfg = make_config(tmp_path, *options)
    space, _ = parse_space([SPACE], cfg)
    plan = EmbeddedSearch(cfg, space)
    words = ["search", "--cfg", str(CONFIG), "--space", SPACE, *BASE, "LOG.PREFIX", str(tmp_path), *options]
    command = [sys.executable, "-c", WAITING_IN_A_TRIAL, str(tmp_path / "victim"), *words]
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    logs = [(tmp_path / f"worker-{number}").open("w") for number in range(2)]
    workers = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL, stderr=log) for log in logs
    ]
    try:
        study = SharedStudy("", plan.folder, space, around=around_digest(plan.cfg, space))
        victim = kill_one_at_work(study, plan, workers, tmp_path / "victim")
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
    record = SearchRecord.read(plan.folder / f"search-{study.name}.json")
    assert [trial.score for trial in record.trials] == [trial.value for trial in done]
    taken_over = next(trial for trial in done if trial.user_attrs.get("takeovers"))
    fraction = str(taken_over.params["TLLM.DETECTOR.AFTER_FRACTION"])
    alone = train(tmp_path / "alone", *options, "TLLM.DETECTOR.AFTER_FRACTION", fraction, *SAVING)
    assert_same_run(alone, plan.run_of(taken_over.params), untested=True)
    assert not list(plan.folder.glob("workers/*"))


def kill_one_at_work(
    study: SharedStudy, plan: EmbeddedSearch, workers: list[subprocess.Popen[bytes]], waiting: Path
) -> subprocess.Popen[bytes]:
    """Kill, by SIGKILL, the worker that waits in the middle of training a trial, and return it.

    Args:
        study: Of the search.
        plan: The search.
        workers: All of them.
        waiting: The file that will hold the id of the process that waits.
    """
    give_up = time.monotonic() + DEADLINE_SECONDS
    while not (waiting.exists() and waiting.read_text().endswith("\n")):
        assert all(worker.poll() is None for worker in workers), "a worker ended by itself"
        assert time.monotonic() < give_up, "no worker came to the middle of a trial"
        time.sleep(0.02)
    victim = next(worker for worker in workers if worker.pid == int(waiting.read_text()))
    (trial,) = (
        item for item in study._under_way() if item.user_attrs.get("worker", "--").split("-")[-2] == str(victim.pid)
    )
    run = plan.run_of(trial.params)
    assert (run.log_folder / "latest").exists() and not run.is_finished()
    victim.kill()
    assert victim.wait() == -signal.SIGKILL
    return victim
