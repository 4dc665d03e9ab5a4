"""Several commands that need the same run, or are given twice."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from tests.hosts.digits_runs import BASE, CONFIG, EPOCHS, assert_equal, load_latest, make_config, train
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.prerequisites import log_folder
from tllm_plugin.hosts.run_lock import run_lock
from tllm_plugin.runs.locks import held, is_held
from tllm_plugin.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
VANILLA = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", "one")
PATIENCE_SECONDS = 120


def lock_of(folder: Path) -> Path:
    return folder.with_name(f".{folder.name}.lock")


def test_commands_that_need_the_same_teacher_train_it_once(tmp_path: Path) -> None:
    methods = ("KD", "AT")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-m", "tllm_plugin", "train", "--cfg", str(CONFIG), *BASE, "LOG.PREFIX", str(tmp_path)]
    logs = [tmp_path / f"{method}.log" for method in methods]
    commands = [
        subprocess.Popen([*words, "DISTILLER.TYPE", method], cwd=ROOT, env=environment, stderr=log.open("w"))
        for method, log in zip(methods, logs, strict=True)
    ]
    for command, log in zip(commands, logs, strict=True):
        assert command.wait(PATIENCE_SECONDS) == 0, log.read_text()
    project = tmp_path / "digits"
    for role in ("teacher", "vanilla"):
        (folder,) = project.glob(f"{role}-*")
        assert folder.joinpath("worklog.txt").read_text().count("epoch: ") == EPOCHS
        assert len(list(folder.glob("train.events/*"))) == 1, "it was begun once"
    said = "".join(log.read_text() for log in logs)
    assert said.count("waiting for another command") + said.count("using") >= 2
    for method in methods:
        alone = train(tmp_path / "alone", "DISTILLER.TYPE", method)
        together = RunFolder.inside(project / alone.log_folder.name)
        assert_equal(load_latest(alone)["model"], load_latest(together)["model"])
        assert alone.curves_npz.read_bytes() == together.curves_npz.read_bytes()
    assert not list(project.glob(".*.lock"))


def test_a_run_that_another_command_trains_is_refused(tmp_path: Path) -> None:
    folder = log_folder(make_config(tmp_path, *VANILLA))
    with (
        held(lock_of(folder)),
        pytest.raises(ConfigError, match=r"to train .*one alone, but another command trains it"),
    ):
        train(tmp_path, *VANILLA)
    assert not folder.exists()
    train(tmp_path, *VANILLA)


def test_whoever_needs_it_waits_until_it_is_trained(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = make_config(tmp_path, *VANILLA, "SOLVER.EPOCHS", "1")
    bundle, folder = load_bundle(cfg), log_folder(cfg)
    other = make_config(tmp_path / "other", *VANILLA, "SOLVER.EPOCHS", "1")
    elsewhere = recipe.run(other, bundle=bundle).log_folder
    caplog.set_level(logging.INFO)
    said = f"waiting for another command that trains {folder}"
    with held(lock_of(folder)):
        found: list[RunFolder] = []
        waiting = threading.Thread(target=lambda: found.append(recipe.ensure_trained(cfg, bundle)))
        waiting.start()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while said not in caplog.text and waiting.is_alive() and time.monotonic() < deadline:
            time.sleep(0.05)
        waiting.join(1.0)
        assert waiting.is_alive() and not found
        elsewhere.rename(folder)
    waiting.join(PATIENCE_SECONDS)
    assert [run.log_folder for run in found] == [folder]
    assert said in caplog.text and f"using {folder}" in caplog.text


def test_the_same_command_may_come_again_to_what_it_holds(tmp_path: Path) -> None:
    with run_lock(tmp_path / "run", wait=False):
        with run_lock(tmp_path / "run", wait=False):
            pass
        assert is_held(tmp_path / ".run.lock")
    assert not (tmp_path / ".run.lock").exists()
    with run_lock(tmp_path / "run", wait=False):
        assert is_held(tmp_path / ".run.lock")


def test_another_thread_waits(tmp_path: Path) -> None:
    entered = threading.Event()

    def enter() -> None:
        with run_lock(tmp_path / "run", wait=True):
            entered.set()

    with run_lock(tmp_path / "run", wait=False):
        other = threading.Thread(target=enter)
        other.start()
        assert not entered.wait(1.0)
    other.join(PATIENCE_SECONDS)
    assert entered.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="Windows has no fork")
def test_a_forked_child_does_not_hold_the_lock(tmp_path: Path) -> None:
    script = """
import os, sys, time
from pathlib import Path
from tllm_plugin.hosts.run_lock import run_lock

with run_lock(Path(sys.argv[1]), wait=False):
    if os.fork() == 0:
        print(os.getpid(), flush=True)
    time.sleep(600)
"""
    command = [sys.executable, "-c", script, str(tmp_path / "run")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        child = int(process.stdout.readline())
        try:
            assert is_held(tmp_path / ".run.lock")
            process.kill()
            process.wait()
            os.kill(child, 0)
            assert not is_held(tmp_path / ".run.lock")
        finally:
            process.kill()
            os.kill(child, signal.SIGKILL)


def test_without_locks_there_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr("tllm_plugin.hosts.run_lock._warned", set())
    runs = [train(tmp_path / name, *VANILLA, "SOLVER.EPOCHS", "1") for name in ("a", "b")]
    assert all(run.is_finished() for run in runs)
    assert caplog.text.count("cannot be locked") == 1 and "No locks available" in caplog.text
