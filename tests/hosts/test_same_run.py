"""A finished run is used only for the config that it was made under; and what a run looks at on the way."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import EPOCHS, assert_same_run, make_config, train
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.embedded import recipe, trainer
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.prerequisites import log_folder
from tllm_plugin.runs.run_folder import RunFolder

VANILLA = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", "vanilla")


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> RunFolder:
    """A copy of the finished vanilla run, where `make_config(tmp_path, *VANILLA)` expects it."""
    folder = log_folder(make_config(tmp_path, *VANILLA))
    shutil.copytree(trained.vanilla.log_folder, folder)
    return RunFolder.inside(folder)


def ensured(prefix: Path, *options: str) -> RunFolder:
    cfg = make_config(prefix, *VANILLA, *options)
    return recipe.ensure_trained(cfg, load_bundle(cfg))


@pytest.fixture(autouse=True)
def nothing_is_trained(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "copied" in request.fixturenames:
        monkeypatch.setattr(trainer.BaseTrainer, "train_epoch", lambda self, epoch: pytest.fail("it was trained"))


def test_another_config_is_refused_by_the_keys_that_differ(copied: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"finished run .*vanilla .* keys differ: SOLVER\.EPOCHS, SOLVER\.LR;"):
        ensured(tmp_path, "SOLVER.LR", "0.3", "SOLVER.EPOCHS", "4")
    with pytest.raises(ConfigError, match=r"differ: DISTILLER\.STUDENT, TLLM\.HOLDOUT\.FRACTION;"):
        ensured(tmp_path, "DISTILLER.STUDENT", "digits_teacher", "TLLM.HOLDOUT.FRACTION", "0.2")
    with pytest.raises(ConfigError, match=r"differ: TLLM\.DETECTOR\.TYPE;"):
        ensured(tmp_path, "TLLM.DETECTOR.TYPE", "all")


def test_what_such_a_run_does_not_look_at_may_differ(copied: RunFolder, tmp_path: Path) -> None:
    unread = ("KD.TEMPERATURE", "2.0", "DISTILLER.TEACHER", "digits_student", "TLLM.DETECTOR.ETA", "0.3")
    found = ensured(tmp_path, *unread, "TLLM.CE_WEIGHT", "9.0", "LOG.TEST_FREQ", "2")
    assert found.path == copied.path


def test_runs_of_earlier_versions_are_used(copied: RunFolder, tmp_path: Path) -> None:
    text = copied.read_config()
    # As if these keys had not been there, or had had another default.
    for line, instead in (("  ACCUMULATE: 1\n", ""), ("  TEST_FREQ: 1\n", ""), ("    ETA: 0.05\n", "    ETA: 0.1\n")):
        assert line in text
        text = text.replace(line, instead)
    copied.config_yaml.write_text(text)
    assert ensured(tmp_path).path == copied.path
    copied.config_yaml.unlink()
    assert ensured(tmp_path).path == copied.path, "the checkpoint holds the config, too"
    with pytest.raises(ConfigError, match=r"differ: SOLVER\.LR;"):
        ensured(tmp_path, "SOLVER.LR", "0.3")


def test_a_damaged_config_is_named(copied: RunFolder, tmp_path: Path) -> None:
    copied.write_config("SOLVER: [")
    with pytest.raises(FileFormatError, match=r"config\.yaml to be the config of a run"):
        ensured(tmp_path)


def test_fewer_looks_at_test_data_change_nothing(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = []
    original = trainer.predict
    monkeypatch.setattr(trainer, "predict", lambda *given, **how: (looks.append(1), original(*given, **how))[1])
    never = train(tmp_path / "never", *VANILLA, "LOG.TEST_FREQ", "0")
    assert len(looks) == 1, "after the last epoch"
    log = (never.log_folder / "worklog.txt").read_text()
    assert log.count("epoch: ") == EPOCHS and "test_accuracy" not in log
    assert_same_run(trained.vanilla, never)
    looks.clear()
    before = never.metrics_json.read_bytes()
    train(tmp_path / "never", *VANILLA, "LOG.TEST_FREQ", "-1", overwrite=True)
    assert not looks and not never.predictions_npz.exists() and never.metrics_json.read_bytes() != before
    assert_same_run(trained.vanilla, never, untested=True)
    looks.clear()
    train(tmp_path / "second", *VANILLA, "LOG.TEST_FREQ", "2")
    assert len(looks) == 2, f"after epoch 2 and after epoch {EPOCHS}"
