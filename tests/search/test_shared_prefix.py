"""A run that begins where it parts from another ends like the same run trained alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.hosts.conftest import Trained, trained  # noqa: F401  (fixture)
from tests.hosts.digits_runs import EPOCHS, assert_equal, assert_same_run, make_config, train
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.shared_prefix import fork, run_sharing


@pytest.fixture(scope="module")
def base(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:  # noqa: F811
    folder = tmp_path_factory.mktemp("base")
    return train(folder, *trained.taught, "TLLM.DETECTOR.TYPE", "none", "LOG.SAVE_CHECKPOINT_FREQ", "1")


def after(trained: Trained, fraction: str) -> tuple[str, ...]:  # noqa: F811
    return (*trained.taught, "TLLM.DETECTOR.TYPE", "after", "TLLM.DETECTOR.AFTER_FRACTION", fraction)


@pytest.mark.parametrize("rule", ["reference", "after", "never"])
def test_equals_the_run_alone(
    rule: str,
    trained: Trained,  # noqa: F811
    base: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = {
        "reference": (*trained.detecting, "TLLM.CE_WEIGHT", "2.0"),
        "after": after(trained, "0.67"),
        "never": after(trained, "1.0"),
    }[rule]
    alone = train(tmp_path / "alone", *options)
    first = min((item.epoch_flagged or EPOCHS) for item in alone.read_flags().classes)
    epochs_trained: list[int] = []
    original = BaseTrainer.train_epoch
    monkeypatch.setattr(
        BaseTrainer, "train_epoch", lambda self, epoch: (epochs_trained.append(epoch), original(self, epoch))[1]
    )
    shared = run_sharing(base, make_config(tmp_path / "shared", *options))
    assert epochs_trained == list(range(first + 1, EPOCHS + 1))
    assert_same_run(alone, shared)
    if rule == "reference":
        assert first < EPOCHS and shared.read_flags().flagged
    best = [torch.load(run.student_best_holdout, weights_only=True) for run in (alone, shared)]
    assert_equal(*best)
    logs = [(run.log_folder / "worklog.txt").read_text() for run in (alone, shared)]
    assert logs[0] == logs[1]


def test_what_flags_before_training_shares_nothing(trained: Trained, base: RunFolder, tmp_path: Path) -> None:  # noqa: F811
    assert fork(base, make_config(tmp_path, *trained.taught, "TLLM.DETECTOR.TYPE", "all")) == 0
    assert not list(tmp_path.rglob("latest"))


def test_another_run_is_refused(trained: Trained, base: RunFolder, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(ConfigError, match=r"these keys differ: SOLVER\.LR$"):
        fork(base, make_config(tmp_path, *after(trained, "0.67"), "SOLVER.LR", "0.3"))
    assert not list(tmp_path.rglob("latest"))
    flagged = train(tmp_path / "base", *after(trained, "0.67"))
    with pytest.raises(ConfigError, match="under `after`"):
        fork(flagged, make_config(tmp_path / "new", *after(trained, "1.0")))
