"""A run that is interrupted or killed anywhere, and resumed, ends as if nothing had happened."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import (
    BASE,
    CONFIG,
    EPOCHS,
    assert_equal,
    assert_same_run,
    interrupt_at,
    load_latest,
    make_config,
    train,
)
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.adapter import _TLLMTrainer
from tllm_plugin.hosts.best_student import BestStudent
from tllm_plugin.hosts.embedded.prerequisites import log_folder
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
STEP_SCHEDULE = ("SOLVER.SCHEDULE", "step", "SOLVER.LR_DECAY_STAGES", "[1, 2]")

# Trains like `tllm train`, and kills itself half-way through the n-th checkpoint write.
KILLED_WHILE_WRITING = """
import os, signal, sys
import tllm_plugin.runs.atomic as atomic
from tllm_plugin.cli import main

writes = [0]

def write_half(path, data):
    writes[0] += os.path.basename(path) == "latest"
    if os.path.basename(path) != "latest" or writes[0] < int(sys.argv[1]):
        return atomic_write(path, data)
    with atomic.atomic_writer(path) as file:
        file.write(data[: len(data) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

atomic_write, atomic.write_bytes = atomic.write_bytes, write_half
sys.exit(main(sys.argv[2:]))
"""


# Trains like `tllm train`, and waits to be killed as soon as a checkpoint of a name has been written.
WAITING_AFTER_WRITING = """
import os, sys, time
from tllm_plugin.cli import main

def replace_and_wait(source, target):
    replace(source, target)
    if os.path.basename(target) == sys.argv[1]:
        time.sleep(600)

replace, os.replace = os.replace, replace_and_wait
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def uninterrupted(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tmp_path_factory.mktemp("uninterrupted"), *trained.detecting)


def test_flags_are_at_stake(uninterrupted: RunFolder) -> None:
    flags = uninterrupted.read_flags()
    epochs = {item.epoch_flagged for item in flags.classes if item.flagged}
    assert epochs and min(epochs) < EPOCHS, "without a flag before the last epoch, the tests below would show little"
    assert 0 < len(flags.flagged) < flags.num_classes


@pytest.mark.parametrize(("epoch", "step"), [(2, 0), (2, 7), (3, 15)])
def test_interrupted(
    epoch: int, step: int, uninterrupted: RunFolder, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch, step)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *trained.detecting)
    resumed = train(tmp_path, *trained.detecting, resume=True)
    assert_same_run(resumed, uninterrupted)


@pytest.mark.parametrize("method", ["KD", "FITNET"])
def test_interrupted_with_step_schedule(
    method: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*trained.detecting, *STEP_SCHEDULE, "DISTILLER.TYPE", method, "SOLVER.LR", "0.05")
    whole = train(tmp_path / "whole", *options)
    rates = load_latest(whole)["schedule"]["_last_lr"]
    assert rates == pytest.approx([0.0005])
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", *options)
    assert_same_run(train(tmp_path / "parts", *options, resume=True), whole)


def interrupt_before(patch: pytest.MonkeyPatch, method: str, call: int = 2) -> None:
    """Make the next run raise KeyboardInterrupt where it comes to a method of the trainer for the `call`-th time."""
    original, calls = getattr(BaseTrainer, method), [0]

    def interrupted(self: BaseTrainer, *given: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            raise KeyboardInterrupt
        return original(self, *given, **named)

    patch.setattr(BaseTrainer, method, interrupted)


@pytest.mark.parametrize("method", ["save_checkpoint", "write_metrics"])
def test_interrupted_between_files(
    method: str, uninterrupted: RunFolder, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_before(patch, method)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *trained.detecting)
    run = RunFolder.find(tmp_path / "digits/kd-digits_student-seed0")
    assert run.read_curves()["epochs"].tolist() == [1, 2]
    assert load_latest(run)["epoch"] == (1 if method == "save_checkpoint" else 2)
    assert_same_run(train(tmp_path, *trained.detecting, resume=True), uninterrupted)


def test_a_checkpoint_from_before_its_epoch_was_scored(
    uninterrupted: RunFolder, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        # The order in which other hosts do it, and an earlier version of this one.
        patch.setattr(_TLLMTrainer, "score_holdout", lambda self, epoch: None)
        interrupt_before(patch, "write_metrics")
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *trained.detecting)
    run = RunFolder.find(tmp_path / "digits/kd-digits_student-seed0")
    assert load_latest(run)["model"]["_extra_state"]["carried"]["curves"]["epochs"].tolist() == [1]
    assert load_latest(run)["epoch"] == 2
    assert_same_run(train(tmp_path, *trained.detecting, resume=True), uninterrupted)


def test_files_every_so_many_seconds(
    uninterrupted: RunFolder, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*trained.detecting, "LOG.SAVE_SECONDS", "1000")
    written: list[int] = []
    original = BaseTrainer.save_epoch
    monkeypatch.setattr(
        BaseTrainer,
        "save_epoch",
        lambda self, epoch, **how: (written.append(epoch), original(self, epoch, **how))[1],
    )
    assert_same_run(train(tmp_path / "whole", *options), uninterrupted)
    assert written == [EPOCHS]
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, 2)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", *options, "LOG.SAVE_CHECKPOINT_FREQ", "2")
    folder = log_folder(make_config(tmp_path / "parts", *options))
    assert load_latest(RunFolder.inside(folder))["epoch"] == 2 and (folder / "epoch_2").exists()
    resumed = train(tmp_path / "parts", *options, resume=True)
    assert_same_run(resumed, uninterrupted)
    best = [torch.load(run.student_best_holdout, weights_only=True) for run in (resumed, uninterrupted)]
    assert_equal(*best)


def kept_bests(run: RunFolder) -> dict[str, Any]:
    """Return the best students that a run kept with its checkpoints, and the last one."""
    return {path.name: torch.load(path, weights_only=True) for path in run.path.glob("student_best_holdout*")}


@pytest.mark.parametrize("method", ["save_checkpoint", "write_metrics"])
def test_the_best_student_is_never_ahead_of_the_checkpoint(
    method: str, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accuracy = {1: 0.5, 2: 0.6, 3: 0.55, 4: 0.7, 5: 0.65, 6: 0.7}
    note = BestStudent.note

    def noted(self: BestStudent, epoch: int, _: float, student: nn.Module) -> None:
        note(self, epoch, accuracy[epoch], student)

    monkeypatch.setattr(BestStudent, "note", noted)
    monkeypatch.setattr(Curves, "mean_accuracy", lambda self, epoch: accuracy[epoch])
    options = (*trained.taught, "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "6", "LOG.SAVE_CHECKPOINT_FREQ")
    whole = train(tmp_path / "whole", *options, "1")
    expected = {name: student["epoch"] for name, student in kept_bests(whole).items()}
    numbered = {f"student_best_holdout_{epoch}": best for epoch, best in enumerate((1, 2, 2, 4, 4, 6), start=1)}
    assert expected == {**numbered, "student_best_holdout": 6}
    with monkeypatch.context() as patch:
        # After epoch 4, for which the best student has been written already.
        interrupt_before(patch, method)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", *options, "2", "LOG.SAVE_SECONDS", "1000")
    run = RunFolder.inside(log_folder(make_config(tmp_path / "parts", *options, "2")))
    assert load_latest(run)["epoch"] == (2 if method == "save_checkpoint" else 4)
    resumed = train(tmp_path / "parts", *options, "1", resume=True)
    assert_same_run(resumed, whole)
    found = kept_bests(resumed)
    assert {"student_best_holdout_5", "student_best_holdout"} < set(found)
    assert ("student_best_holdout_3" in found) == (method == "save_checkpoint")
    for name, student in found.items():
        assert_equal(student, kept_bests(whole)[name])


def test_a_run_that_lost_its_best_student_goes_on(trained: Trained, tmp_path: Path, monkeypatch: Any) -> None:
    options = (*trained.detecting, "LOG.SAVE_CHECKPOINT_FREQ", "3")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, 0)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *options)
    run = RunFolder.inside(log_folder(make_config(tmp_path, *options)))
    run.student_best_holdout.unlink()
    monkeypatch.setattr(BestStudent, "note", lambda *given: None)
    assert train(tmp_path, *options, resume=True).is_finished()
    assert not run.student_best_until(3).exists()


def logged_steps(events: Path, copies: Path) -> list[int]:
    """Return the steps that TensorBoard shows, from copies of the files that it reads in the order they were begun.

    It reads them in the order of their names, which end in how many writers their process had made before: 10 comes
    before 9. Commands are processes of their own and make few; the tests make many in one.
    """
    copies.mkdir()
    for path in events.iterdir():
        stem, _, writers_before = path.name.rpartition(".")
        shutil.copy(path, copies / f"{stem}.{int(writers_before):06d}")
    return [event.step for event in EventAccumulator(str(copies)).Reload().Scalars("train_loss")]


def test_starting_anew_leaves_nothing_of_what_was_there(
    uninterrupted: RunFolder, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 3, 0)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *trained.detecting, "LOG.SAVE_CHECKPOINT_FREQ", "1")
    folder = log_folder(make_config(tmp_path, *trained.detecting))
    assert (folder / "epoch_2").exists()
    run = train(tmp_path, *trained.detecting, overwrite=True)
    assert not list(folder.glob("epoch_*")) and not list(run.path.glob("student_best_holdout_*"))
    assert (folder / "worklog.txt").read_text() == (uninterrupted.log_folder / "worklog.txt").read_text()
    assert logged_steps(folder / "train.events", tmp_path / "events") == [1, 2, 3]


def test_what_is_trained_again_is_logged_once(
    uninterrupted: RunFolder, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_before(patch, "save_checkpoint")
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *trained.detecting)
    folder = log_folder(make_config(tmp_path, *trained.detecting))
    assert "epoch: 2\n" in (folder / "worklog.txt").read_text()
    train(tmp_path, *trained.detecting, resume=True)
    logs = [(path / "worklog.txt").read_text() for path in (folder, uninterrupted.log_folder)]
    assert logs[0] == logs[1]
    assert logged_steps(folder / "train.events", tmp_path / "events") == [1, 2, 3]


def test_a_run_of_an_earlier_version_goes_on_although_keys_were_added(trained: Trained, tmp_path: Path) -> None:
    run = train(tmp_path, *trained.detecting)
    state = load_latest(run)
    assert "  MIN_ROWS: 4\n" in state["config"]
    state["config"] = state["config"].replace("  MIN_ROWS: 4\n", "")
    torch.save(state, run.log_folder / "latest")
    train(tmp_path, *trained.detecting, resume=True)
    with pytest.raises(ConfigError, match=r"these keys differ: TLLM\.MIN_ROWS;"):
        train(tmp_path, *trained.detecting, "TLLM.MIN_ROWS", "5", resume=True)


def test_resuming_a_finished_run_changes_nothing(uninterrupted: RunFolder, trained: Trained, tmp_path: Path) -> None:
    train(tmp_path, *trained.detecting)
    assert_same_run(train(tmp_path, *trained.detecting, resume=True), uninterrupted)


def arguments(trained: Trained, prefix: Path) -> list[str]:
    return ["train", "--cfg", str(CONFIG), *BASE, "LOG.PREFIX", str(prefix), *trained.detecting]


def start(*words: str) -> subprocess.Popen[bytes]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen([sys.executable, *words], env=environment, stderr=subprocess.DEVNULL)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
@pytest.mark.parametrize("awaited", ["student_latest", "latest"])
def test_killed(awaited: str, uninterrupted: RunFolder, trained: Trained, tmp_path: Path) -> None:
    folder = log_folder(make_config(tmp_path, *trained.detecting))
    process = start("-c", WAITING_AFTER_WRITING, awaited, *arguments(trained, tmp_path))
    deadline = time.monotonic() + 120
    while not (folder / awaited).exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    # Killed right after `student_latest`, there is no `latest` yet: then the run starts anew.
    assert (folder / "student_latest").exists() and (folder / "latest").exists() == (awaited == "latest")
    resumed = train(tmp_path, *trained.detecting, resume=awaited == "latest")
    assert_same_run(resumed, uninterrupted)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGKILL")
def test_killed_while_writing_a_checkpoint(uninterrupted: RunFolder, trained: Trained, tmp_path: Path) -> None:
    folder = log_folder(make_config(tmp_path, *trained.detecting))
    process = start("-c", KILLED_WHILE_WRITING, "2", *arguments(trained, tmp_path))
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert load_latest(RunFolder.inside(folder))["epoch"] == 1, "the old checkpoint must be whole"
    assert list(folder.glob(".latest.*")), "the half-written file was not on the disk"
    assert_same_run(train(tmp_path, *trained.detecting, resume=True), uninterrupted)
    assert not list(folder.glob(".*tllm-tmp")), "leftovers of the killed process remain"


def test_changed_config_is_refused_and_leaves_the_run_as_it_is(trained: Trained, tmp_path: Path) -> None:
    run = train(tmp_path, *trained.detecting)
    before = {path: path.read_bytes() for path in run.path.iterdir()}
    changes = ("SOLVER.LR", "0.3", "KD.TEMPERATURE", "2.0", "TLLM.HOLDOUT.SEED", "1")
    with pytest.raises(ConfigError, match=r"these keys differ: KD.TEMPERATURE, SOLVER.LR, TLLM.HOLDOUT.SEED; resume"):
        train(tmp_path, *trained.detecting, *changes, resume=True)
    assert {path: path.read_bytes() for path in run.path.iterdir()} == before


def test_refused_before_a_new_teacher_is_trained(tmp_path: Path) -> None:
    run = train(tmp_path, "SOLVER.EPOCHS", "1")
    runs = sorted(run.log_folder.parent.iterdir())
    with pytest.raises(ConfigError, match="these keys differ: SOLVER.LR; resume"):
        train(tmp_path, "SOLVER.EPOCHS", "1", "SOLVER.LR", "0.3", resume=True)
    assert sorted(run.log_folder.parent.iterdir()) == runs


def test_keys_without_effect_may_change(trained: Trained, tmp_path: Path) -> None:
    options = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "1", "EXPERIMENT.NAME", "a")
    train(tmp_path, *options)
    train(tmp_path, *options, "DATASET.NUM_WORKERS", "0", "LOG.SAVE_CHECKPOINT_FREQ", "7", resume=True)


def test_interrupted_prerequisite_is_resumed_under_another_method(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, 0)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, "SOLVER.EPOCHS", "2")
    # What differs here means nothing to the teacher, whose run was cut off.
    train(tmp_path, "SOLVER.EPOCHS", "2", "KD.TEMPERATURE", "2.0", "TLLM.LABEL_SMOOTHING", "0.2")
    assert len(list(tmp_path.glob("digits/teacher-*"))) == 1


def test_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="to hold a run to resume, but there is no checkpoint `latest`"):
        train(tmp_path, resume=True)


def test_a_run_is_not_overwritten_unasked(tmp_path: Path) -> None:
    options = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "1")
    first = train(tmp_path, *options)
    with pytest.raises(ConfigError, match="add --resume to continue it, --overwrite to start anew"):
        train(tmp_path, *options)
    weights = load_latest(first)["model"]
    again = load_latest(train(tmp_path, *options, overwrite=True))["model"]
    assert all(weights[name].equal(again[name]) for name in weights if name.startswith("distiller."))


def test_damaged_checkpoint(trained: Trained, tmp_path: Path) -> None:
    options = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "1")
    latest = train(tmp_path, *options).log_folder / "latest"
    whole = latest.read_bytes()
    latest.write_bytes(whole[:1000])
    with pytest.raises(FileFormatError, match="latest to be a checkpoint to resume from, but"):
        train(tmp_path, *options, resume=True)
    latest.write_bytes(whole[: len(whole) // 2] + bytes([whole[len(whole) // 2] ^ 1]) + whole[len(whole) // 2 + 1 :])
    with pytest.raises(FileFormatError, match="latest to be a checkpoint to resume from, but"):
        train(tmp_path, *options, resume=True)
    latest.write_bytes(trained.checkpoint.read_bytes())
    with pytest.raises(FileFormatError, match="to be a checkpoint of the embedded host, but parts are missing"):
        train(tmp_path, *options, resume=True)


def test_moved_output_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("SOLVER.EPOCHS", "2")
    whole = load_latest(train(tmp_path / "before", *options))
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, 3)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "before", *options, overwrite=True)
    # The vanilla run beside it, found by the run itself, has another path from now on.
    (tmp_path / "before").rename(tmp_path / "after")
    resumed = load_latest(train(tmp_path / "after", *options, resume=True))
    for state in (whole, resumed):
        del state["seconds_per_epoch"], state["config"]
    assert_equal(resumed, whole)


def test_another_reference_is_refused(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vanilla = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", "other", "SOLVER.LR", "0.1")
    other = train(tmp_path, *vanilla)
    with monkeypatch.context() as patch:
        interrupt_at(patch, 2, 0)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *trained.detecting)
    with pytest.raises(ConfigError, match="Expected the reference run that this run began with, but its curves differ"):
        train(tmp_path, *trained.detecting, "TLLM.DETECTOR.REFERENCE", str(other.path), resume=True)
