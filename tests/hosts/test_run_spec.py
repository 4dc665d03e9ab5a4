"""What makes two runs the same: what an earlier version wrote and answered holds, key by key."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.hosts.digits_runs import make_config
from tests.hosts.recorded_cases import RECORDED, all_names
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.embedded import job, trainer

NAMES = json.loads((RECORDED / "names.json").read_text())
#: Of the recorded runs.
OPTIONS = (
    *("SOLVER.EPOCHS", "2", "DATASET.NUM_WORKERS", "0", "RUNTIME.DEVICE", "cpu"),
    *("DISTILLER.TEACHER", "digits_student", "TLLM.DETECTOR.CONFIDENCE", "0"),
)


@pytest.fixture
def recorded(tmp_path: Path) -> Path:
    shutil.copytree(RECORDED / "digits", tmp_path / "digits")
    return tmp_path


def test_names_of_runs_and_searches_are_those_of_earlier_versions() -> None:
    assert all_names() == NAMES
    names = [name for host in NAMES.values() for case in host.values() for name in case.values()]
    assert len({name for name in names if name}) > 40


def test_a_recorded_run_goes_on_with_what_was_trained_for_it(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    original = trainer.BaseTrainer.train_epoch
    monkeypatch.setattr(
        trainer.BaseTrainer,
        "train_epoch",
        lambda self, epoch: (epochs.append((Path(self.log_path).name, epoch)), original(self, epoch))[1],
    )
    before = {path.name for path in (recorded / "digits").iterdir()}
    with pytest.raises(ConfigError, match=r"these keys differ: KD\.TEMPERATURE, RUNTIME\.DEVICE, TLLM\.DETECTOR\.ETA;"):
        other = ("KD.TEMPERATURE", "2.0", "RUNTIME.DEVICE", "auto", "TLLM.DETECTOR.ETA", "0.3")
        job.run(make_config(recorded, *OPTIONS, *other), resume=True)
    cfg = make_config(recorded, *OPTIONS, "LOG.TEST_FREQ", "2", "DATASET.NUM_WORKERS", "1", "EXPERIMENT.TAG", "again")
    run = job.run(cfg, resume=True)
    assert epochs == [("kd-digits_student-seed0", 2)] and run.is_finished()
    assert {path.name for path in (recorded / "digits").iterdir()} == before, "nothing beside it was trained"
