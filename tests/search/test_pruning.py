"""Stopping trials by Optuna's rules: what they are told, when they stop, and what another worker's trials do to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import Trial, TrialState

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import Predictions
from tllm_plugin.search.optuna_study import SharedStudy
from tllm_plugin.search.pruning import make_pruner, reporter
from tllm_plugin.search.space import Dimension

ETA = "TLLM.DETECTOR.ETA"
GRID = (Dimension(ETA, (0.4, 0.3, 0.2, 0.1)),)
EPOCHS = 6
LABELS = torch.tensor([0] * 10 + [1] * 10)


def curves(*right: int) -> Curves:
    """Return the curves of a student that gets so many of the 10 images of class 0 right after each epoch."""
    result = Curves(LABELS, 2, torch.arange(20))
    for epoch, count in enumerate(right, start=1):
        rank = torch.where(torch.arange(20) < count, 1, 2).to(torch.uint8)
        result.append(epoch, Predictions(LABELS, torch.where(rank == 1, LABELS, -1), 2, rank, torch.zeros(20)))
    return result


def shared(folder: Path, pruner: str = "median") -> SharedStudy:
    return SharedStudy(f"journal:{folder / 'journal'}", folder, GRID, pruner=make_pruner(pruner, EPOCHS))


class Student:
    """Improves by an image an epoch from where its eta puts it; begins with two epochs that all trials share."""

    def __init__(self) -> None:
        self.trained: list[tuple[float, int]] = []

    def __call__(self, values: dict[str, Any], trial: Trial) -> float:
        watch = reporter(trial, EPOCHS)
        right = [1, 2]
        for epoch in range(3, EPOCHS + 1):
            right.append(round(10 * values[ETA]) + epoch - 3)
            self.trained.append((values[ETA], epoch))
            watch(curves(*right))
        return right[-1] / 20


def test_who_is_behind_stops_and_is_never_taken_for_finished(tmp_path: Path) -> None:
    student, study = Student(), shared(tmp_path)
    study.work(student)
    done = study.finished()
    assert [trial.params[ETA] for trial in done] == [0.4, 0.3, 0.2, 0.1]
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 2 + [TrialState.PRUNED] * 2
    assert [trial.last_step for trial in done] == [EPOCHS, EPOCHS, 3, 3]
    assert [trial.params[ETA] for trial in study.scored()] == [0.4, 0.3]
    assert [epoch for eta, epoch in student.trained if eta == 0.1] == [3]
    # Classes count alike: 4 of 10 and 0 of 10.
    assert done[0].intermediate_values == pytest.approx({1: 0.05, 2: 0.1, 3: 0.2, 4: 0.25, 5: 0.3, 6: 0.35})
    shared(tmp_path).work(lambda values, trial: pytest.fail("with pruning, a pruned trial stays pruned"))


def test_without_pruning_they_are_continued(tmp_path: Path) -> None:
    shared(tmp_path).work(Student())
    student, study = Student(), shared(tmp_path, "")
    study.work(student)
    assert {eta for eta, _ in student.trained} == {0.2, 0.1}
    done = study.finished()
    assert [trial.state for trial in done] == [TrialState.COMPLETE] * 4
    assert sorted(trial.params[ETA] for trial in done) == [0.1, 0.2, 0.3, 0.4]
    shared(tmp_path, "").work(lambda values, trial: pytest.fail("nothing is left"))


def test_a_worker_goes_by_the_trials_of_others_and_of_the_dead(tmp_path: Path) -> None:
    first, second = shared(tmp_path), shared(tmp_path)

    class Dies(Student):
        def __call__(self, values: dict[str, Any], trial: Trial) -> float:
            if values[ETA] == 0.2:
                reporter(trial, EPOCHS)(curves(1, 2, 9))
                raise KeyboardInterrupt
            return super().__call__(values, trial)

    with pytest.raises(KeyboardInterrupt):
        first.work(Dies())
    student = Student()
    second.work(student)
    assert sorted(student.trained) == [(0.1, 3), (0.2, 3)]
    assert {trial.params[ETA]: trial.state for trial in second.finished()} == {
        0.4: TrialState.COMPLETE,
        0.3: TrialState.COMPLETE,
        0.2: TrialState.PRUNED,
        0.1: TrialState.PRUNED,
    }


@pytest.mark.parametrize("name", ["median", "halving", "hyperband"])
def test_the_last_epoch_is_not_pruned_and_a_bad_trial_is(name: str) -> None:
    study = optuna.create_study(direction="maximize", pruner=make_pruner(name, EPOCHS), study_name="study")
    stopped = []
    for number in range(8):
        trial = study.ask()
        watch = reporter(trial, EPOCHS)
        try:
            for epoch in range(1, EPOCHS + 1):
                watch(curves(*[10 - number] * epoch))
        except optuna.TrialPruned as pruned:
            stopped.append(number)
            assert 1 <= epoch < EPOCHS and str(pruned) == f"pruned after epoch {epoch}"
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, (10 - number) / 20)
    assert 0 not in stopped and 7 in stopped


def test_names() -> None:
    assert make_pruner("", 10) is None
    with pytest.raises(ConfigError, match="`--prune` to be one of halving, hyperband, median, but got 'mediam'"):
        make_pruner("mediam", 10)
