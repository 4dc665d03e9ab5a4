"""Locks whose file does not stay behind."""

from __future__ import annotations

import fcntl
import threading
import time
from pathlib import Path
from typing import IO

import pytest

from tllm_plugin.runs.locks import held, is_held

PATIENCE_SECONDS = 60


def test_of_many_that_remove_the_file_one_at_a_time_is_inside(tmp_path: Path) -> None:
    inside, most, done = [0], [0], [0]

    def work() -> None:
        for _ in range(25):
            with held(tmp_path / "lock", remove=True):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0.001)
                done[0] += 1
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_SECONDS)
    assert (most, done) == ([1], [100])
    assert not (tmp_path / "lock").exists()


def test_a_file_that_was_removed_while_its_lock_was_waited_for_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "lock"
    removals = [1]
    original = fcntl.flock

    def removed_first(file: IO[str], operation: int) -> None:
        original(file, operation)
        if removals:
            removals.pop()
            path.unlink()

    monkeypatch.setattr(fcntl, "flock", removed_first)
    with held(path, remove=True):
        assert not removals and path.exists()
    assert not path.exists()


def test_a_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tllm_plugin.runs.locks._HAS_LOCKS", False)
    with pytest.raises(OSError, match=r"this system has no file locks: '.*lock'"), held(tmp_path / "lock"):
        pass
    assert not is_held(tmp_path / "lock")
