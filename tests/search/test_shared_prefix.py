"""A run that begins where it parts from another ends like the same run trained alone, bit for bit."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import EPOCHS, assert_equal, assert_same_run, make_config, train
from tests.search.staged import SAVING
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.embedded.prerequisites import log_folder
from tllm_plugin.hosts.embedded.run_files import read_state
from tllm_plugin.runs.atomic import save_torch
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search import shared_prefix
from tllm_plugin.search.forking import read_fork
from tllm_plugin.search.shared_prefix import fork, run_sharing


def staged(trained: Trained, eta: str, *more: str) -> tuple[str, ...]:
    return (*trained.taught, "TLLM.DETECTOR.TYPE", "staged_for_tests", "TLLM.DETECTOR.ETA", eta, *SAVING, *more)


@pytest.fixture(scope="module")
def base(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("base")
    return train(folder, *trained.taught, "TLLM.DETECTOR.TYPE", "none", *SAVING)


def after(trained: Trained, fraction: str) -> tuple[str, ...]:
    return (*trained.taught, "TLLM.DETECTOR.TYPE", "after", "TLLM.DETECTOR.AFTER_FRACTION", fraction)


@pytest.mark.parametrize("rule", ["reference", "true_prob", "after", "never"])
def test_equals_the_run_alone(
    rule: str,
    trained: Trained,
    base: RunFolder,
    tmp_path: Path,
    epochs_trained: list[int],
) -> None:
    options = {
        "reference": (*trained.detecting, "TLLM.CE_WEIGHT", "2.0"),
        "true_prob": (*trained.detecting, "TLLM.DETECTOR.SCORE", "true_prob"),
        "after": after(trained, "0.67"),
        "never": after(trained, "1.0"),
    }[rule]
    alone = train(tmp_path / "alone", *options)
    first = min((item.epoch_flagged or EPOCHS) for item in alone.read_flags().classes)
    epochs_trained.clear()
    shared = run_sharing([base], make_config(tmp_path / "shared", *options))
    assert epochs_trained == list(range(first + 1, EPOCHS + 1))
    assert_same_run(alone, shared)
    if rule == "reference":
        assert first < EPOCHS and shared.read_flags().flagged
    best = [torch.load(run.student_best_holdout, weights_only=True) for run in (alone, shared)]
    assert_equal(*best)
    logs = [(run.log_folder / "worklog.txt").read_text() for run in (alone, shared)]
    assert logs[0] == logs[1]


def test_killed_before_a_shared_run_was_whole(
    trained: Trained,
    base: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cfg = make_config(tmp_path / "shared", *after(trained, "1.0"))
    with monkeypatch.context() as patch:
        patch.setattr(shared_prefix, "_finish", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run_sharing([base], cfg)
    assert_same_run(train(tmp_path / "alone", *after(trained, "1.0")), run_sharing([base], cfg))


@pytest.mark.parametrize(("missing", "own"), [("[12]", [1, 2, 3]), ("2", [2, 3])])
def test_without_its_best_student_a_checkpoint_is_not_shared(
    missing: str,
    own: list[int],
    trained: Trained,
    base: RunFolder,
    tmp_path: Path,
    epochs_trained: list[int],
) -> None:
    # As an earlier version left it behind.
    old = RunFolder.inside(shutil.copytree(base.log_folder, tmp_path / "old"))
    for path in old.path.glob(f"student_best_holdout_{missing}"):
        path.unlink()
    shared = run_sharing([old], make_config(tmp_path / "shared", *after(trained, "0.67")))
    assert epochs_trained == own
    assert_same_run(train(tmp_path / "alone", *after(trained, "0.67")), shared)


def test_what_flags_before_training_shares_nothing(trained: Trained, base: RunFolder, tmp_path: Path) -> None:
    assert fork([base], make_config(tmp_path, *trained.taught, "TLLM.DETECTOR.TYPE", "all")) == 0
    assert not list(tmp_path.rglob("latest"))


def test_a_checkpoint_is_read_once_and_again_when_it_has_changed(
    trained: Trained,
    base: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read: list[str] = []

    def counted(path: Path) -> Any:
        read.append(path.name)
        return read_state(path)

    monkeypatch.setattr(shared_prefix, "read_state", counted)
    parent = RunFolder.inside(shutil.copytree(base.log_folder, tmp_path / "parent"))
    trials = [make_config(tmp_path / str(number), *after(trained, "0.67")) for number in range(3)]
    for cfg in trials[:2]:
        assert fork([parent], cfg) == 2
    assert read == ["epoch_2"]
    before = [torch.load(log_folder(cfg) / "latest", weights_only=True) for cfg in trials[:2]]
    assert_equal(*({key: value for key, value in state.items() if key != "config"} for state in before))
    # Somebody has trained the parent anew.
    path = parent.log_folder / "epoch_2"
    state = torch.load(path, weights_only=True)
    state["model"]["distiller.student.conv1.weight"] += 1
    save_torch(path, state)
    assert fork([parent], trials[2]) == 2 and read == ["epoch_2", "epoch_2"]
    again = torch.load(log_folder(trials[2]) / "latest", weights_only=True)["model"]
    assert torch.equal(
        again["distiller.student.conv1.weight"], before[0]["model"]["distiller.student.conv1.weight"] + 1
    )
    path.unlink()
    with pytest.raises(FileFormatError, match="to be a checkpoint to resume from, but there is no such file"):
        shared_prefix._state_of(path)


def test_another_run_is_refused(trained: Trained, base: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"these keys differ: SOLVER\.LR$"):
        fork([base], make_config(tmp_path, *after(trained, "0.67"), "SOLVER.LR", "0.3"))
    assert not list(tmp_path.rglob("latest"))


@pytest.fixture(scope="module")
def earlier(trained: Trained, base: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A trial that flags class 3 after epoch 1 and nothing else, forked from the base."""
    return run_sharing([base], make_config(tmp_path_factory.mktemp("earlier"), *staged(trained, "0.9")))


def test_begins_where_it_parts_from_an_earlier_trial(
    trained: Trained,
    base: RunFolder,
    earlier: RunFolder,
    tmp_path: Path,
    epochs_trained: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:
    options = staged(trained, "0.2")
    alone = train(tmp_path / "alone", *options)
    assert [item.epoch_flagged for item in alone.read_flags().classes if item.flagged] == [1, 2]
    epochs_trained.clear()
    caplog.set_level(logging.INFO)
    caplog.clear()
    shared = run_sharing([base, earlier], make_config(tmp_path / "shared", *options))
    assert epochs_trained == [3], "the base shares one epoch, the earlier trial two"
    told = [record.getMessage() for record in caplog.records if "no teacher from now on" in record.getMessage()]
    assert told == ["epoch 2: no teacher from now on for 8"], "class 3 was flagged before"
    assert_same_run(alone, shared)
    assert_equal(*(torch.load(run.student_best_holdout, weights_only=True) for run in (alone, shared)))
    epochs, parent = read_fork(shared)
    assert epochs == 2 and parent is not None and parent.path.samefile(earlier.path)


def test_flagging_the_same_is_the_same_run(
    trained: Trained,
    base: RunFolder,
    earlier: RunFolder,
    tmp_path: Path,
    epochs_trained: list[int],
) -> None:
    options = staged(trained, "0.8")
    shared = run_sharing([base, earlier], make_config(tmp_path / "shared", *options))
    assert epochs_trained == []
    alone = train(tmp_path / "alone", *options)
    assert_same_run(alone, shared)

    never = make_config(tmp_path / "untested", *options, "LOG.TEST_FREQ", "-1")
    untested = run_sharing([base, earlier], never)
    assert_same_run(alone, untested, untested=True)
    (untested.log_folder / "latest").unlink()
    files = {path: path.read_bytes() for path in untested.log_folder.rglob("*") if path.is_file()}
    assert run_sharing([base, earlier], never).path == untested.path, "finished, whatever else was removed"
    assert files == {path: path.read_bytes() for path in untested.log_folder.rglob("*") if path.is_file()}
    another = run_sharing([base, untested], make_config(tmp_path / "another", *options))
    assert_same_run(alone, another)


def test_another_treatment_parts_at_the_first_flag(
    trained: Trained,
    base: RunFolder,
    earlier: RunFolder,
    tmp_path: Path,
    epochs_trained: list[int],
) -> None:
    options = staged(trained, "0.9", "TLLM.CE_WEIGHT", "2.0")
    shared = run_sharing([base, earlier], make_config(tmp_path / "shared", *options))
    assert epochs_trained == [2, 3]
    assert_same_run(train(tmp_path / "alone", *options), shared)
