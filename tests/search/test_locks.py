"""Locks that several workers share."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import make_config
from tllm_plugin.runs.locks import each_under_its_lock, held, is_held
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.embedded import EmbeddedSearch
from tllm_plugin.search.space import parse_space

PATIENCE_SECONDS = 60


class Elsewhere:
    """Another worker that is at a task until it is told to stop."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._work)

    def _work(self) -> None:
        with held(self.path):
            self.at_work.set()
            self.stopped_in_time = self.stop.wait(PATIENCE_SECONDS)

    def __enter__(self) -> Elsewhere:
        self.at_work = threading.Event()
        self.thread.start()
        assert self.at_work.wait(PATIENCE_SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join()


def test_tasks_that_others_are_at_come_last(tmp_path: Path) -> None:
    order: list[str] = []
    with Elsewhere(tmp_path / "first") as other:

        def note(name: str) -> int:
            assert is_held(tmp_path / name)
            order.append(name)
            if len(order) == 2:
                other.stop.set()
            return len(order)

        tasks = {name: lambda _, name=name: note(name) for name in ("first", "second", "third")}
        done = each_under_its_lock(tmp_path, tasks)
        assert other.stopped_in_time
    assert order == ["second", "third", "first"]
    assert done == {"first": 3, "second": 1, "third": 2}
    assert not any(is_held(tmp_path / name) for name in order)


def test_a_task_that_fails_lets_go_of_its_lock(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError):
        each_under_its_lock(tmp_path, {"a": lambda _: 1 // 0})
    assert not is_held(tmp_path / "a")
    assert each_under_its_lock(tmp_path, {"a": lambda _: 1}) == {"a": 1}
    assert each_under_its_lock(tmp_path, {}) == {}


def test_a_second_worker_is_taught_while_the_first_trains_the_reference(tmp_path: Path, trained: Trained) -> None:
    cfg = make_config(tmp_path, "SOLVER.EPOCHS", "2", *trained.taught)
    assert cfg.TLLM.DETECTOR.TYPE == "reference"
    space, _ = parse_space(["ETA=0.1"], cfg)
    host = EmbeddedSearch(cfg, space)
    with Elsewhere(host.folder / "locks" / "vanilla") as other:
        finder = threading.Thread(target=_stop_when_finished, args=(host, other))
        finder.start()
        baselines = host.prepare()
        finder.join()
        assert other.stopped_in_time, "the second worker waited for the first one's run"
    assert baselines.taught is not None and baselines.taught.log_folder == host.folder / "taught"
    assert baselines.vanilla is not None and baselines.vanilla.is_finished()


def _stop_when_finished(host: EmbeddedSearch, other: Elsewhere) -> None:
    taught = RunFolder.inside(host.folder / "taught")
    while not other.stop.wait(0.05):
        if taught.metrics_json.exists() and taught.is_finished():
            other.stop.set()
        if not other.thread.is_alive():
            return
