"""Which checkpoints a search keeps: where waiting trials part, every few seconds, or all where that cannot be told."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import make_config
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.detectors import create_detector
from tllm_plugin.core.predictions import Predictions
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search import forking
from tllm_plugin.search.embedded import EmbeddedSearch
from tllm_plugin.search.forking import CheckpointKeeper, DetectorReplay, Replays
from tllm_plugin.search.space import parse_space

EPOCHS = 6


@pytest.fixture
def slowly(monkeypatch: pytest.MonkeyPatch) -> None:
    """No checkpoint is kept for the time alone that has passed."""
    monkeypatch.setattr("tllm_plugin.search.embedded.SECONDS", 1e9)


def plan(
    trained: Trained,
    folder: Path,
    *words: str,
    options: tuple[str, ...] = (),
    every: int = 0,
) -> EmbeddedSearch:
    given = ("SOLVER.EPOCHS", str(EPOCHS), *trained.taught, "TLLM.DETECTOR.TYPE", "after", *options)
    cfg = make_config(folder, "TLLM.HOLDOUT.SEARCH_FRACTION", "0.1", *given)
    space, problems = parse_space(words, cfg)
    assert not problems
    return EmbeddedSearch(cfg, space, every)


def kept(run: RunFolder) -> list[int]:
    """Return the epochs whose checkpoints are there; each must have its student and the best student until then."""
    epochs = sorted(int(path.name.removeprefix("epoch_")) for path in run.log_folder.glob("epoch_*"))
    for epoch in epochs:
        assert torch.load(run.log_folder / f"epoch_{epoch}", weights_only=True)["epoch"] == epoch
        assert (run.log_folder / f"student_{epoch}").exists()
        best = torch.load(run.student_best_until(epoch), weights_only=True)
        curves = Curves.from_state(to_state(run.read_curves()))
        assert best["epoch"] <= epoch
        assert best["holdout_accuracy"] == max(curves.mean_accuracy(number) for number in range(1, epoch + 1))
    return epochs


def test_kept_where_trials_part(
    trained: Trained,
    tmp_path: Path,
    slowly: None,
    epochs_trained: list[int],
) -> None:
    # These trials flag every class after epochs 2 and 4.
    host = plan(trained, tmp_path, "AFTER_FRACTION=0.34,0.67")
    baselines = host.prepare(taught=True)
    assert baselines.taught is not None and kept(baselines.taught) == [2, 4, EPOCHS]
    epochs_trained.clear()
    for fraction, own in ((0.67, [5, 6]), (0.34, [3, 4, 5, 6])):
        run = host.train({"TLLM.DETECTOR.AFTER_FRACTION": fraction}, baselines, [])
        assert epochs_trained == own
        epochs_trained.clear()
        assert kept(run) == [EPOCHS], "nobody waits to part from it"


def test_trials_are_watched_too(trained: Trained, tmp_path: Path, slowly: None) -> None:
    # Of the others one parts at the first flag, after epoch 4, which it treats otherwise, and two flag after epoch 2.
    words = ("AFTER_FRACTION=0.34,0.67", "CE_WEIGHT=1,2")
    host = plan(trained, tmp_path, *words)
    baselines = host.prepare(taught=False)
    first = host.train({"TLLM.DETECTOR.AFTER_FRACTION": 0.67, "TLLM.CE_WEIGHT": 2.0}, baselines, [])
    assert kept(first) == [2, 4, EPOCHS]


@pytest.mark.parametrize("why", ["range", "many", "reference"])
def test_all_are_kept_where_it_cannot_be_told(
    why: str,
    trained: Trained,
    tmp_path: Path,
    slowly: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    words, options = ("AFTER_FRACTION=0.3:0.7",), ()
    if why == "many":
        monkeypatch.setattr("tllm_plugin.search.embedded.MOST_TRIALS", 1)
        words = ("AFTER_FRACTION=0.3,0.7",)
    elif why == "reference":
        words, options = ("ETA=0.1,0.2",), ("TLLM.DETECTOR.TYPE", "reference")
    host = plan(trained, tmp_path, *words, options=options)
    cfg = host.taught()
    # As by a second worker, while the first one is still at the vanilla reference.
    run = recipe.run(cfg, bundle=host.bundle, keep=host._keep(cfg))
    assert kept(run) == list(range(1, EPOCHS + 1))


@pytest.mark.parametrize(("fractions", "epochs"), [("0.34,0.67", [2, 3, 4, 6]), ("0.3:0.7", [3, 6])])
def test_every_so_many_epochs_on_request(
    fractions: str,
    epochs: list[int],
    trained: Trained,
    tmp_path: Path,
) -> None:
    host = plan(trained, tmp_path, f"AFTER_FRACTION={fractions}", every=3)
    taught = host.prepare(taught=True).taught
    assert taught is not None and kept(taught) == epochs


def scored(*right: int) -> Curves:
    """Return the curves of a student that gets so many of the 20 images right after each epoch."""
    labels = torch.tensor([0] * 10 + [1] * 10)
    curves = Curves(labels, 2, torch.arange(20))
    for epoch, count in enumerate(right, start=1):
        rank = torch.where(torch.arange(20) < count, 1, 2).to(torch.uint8)
        curves.append(epoch, Predictions(labels, torch.where(rank == 1, labels, -1), 2, rank, torch.zeros(20)))
    return curves


def test_kept_when_seconds_have_passed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr(forking, "monotonic", lambda: clock[0])
    keep = CheckpointKeeper(RunFolder.inside(tmp_path), make_config(tmp_path), lambda: [], ("one", "other"), Replays())
    never = create_detector("none", 2)
    answers = []
    for passed in (1.0, 1.1, 1.0, 0.9, 0.2):
        clock[0] += passed
        answers.append(keep(scored(3, 4), never))
    assert answers == [False, True, False, False, True]


def test_a_replay_watches_every_epoch_once_and_stops_where_they_part() -> None:
    seen = []

    class Recording(type(create_detector("none", 2))):  # type: ignore[misc]
        def judge(self, epoch: int, samples: Predictions) -> object:
            seen.append(epoch)
            flags, evidence = super().judge(epoch, samples)
            return flags if epoch < 3 else ~flags, evidence

    never = torch.full((2,), -1)
    replay = DetectorReplay(Recording(2), treated_alike=True)
    replay.watch(scored(1), never)
    replay.watch(scored(1, 2), never)
    assert seen == [1, 2] and replay.parted_after is None and replay.watched == 2
    replay.watch(scored(1, 2, 3, 4), never)
    replay.watch(scored(1, 2, 3, 4, 5), never)
    assert seen == [1, 2, 3] and replay.parted_after == replay.watched == 3


@pytest.mark.parametrize(("treated_alike", "parted_after"), [(True, None), (False, 2)])
def test_a_replay_goes_by_what_is_done_with_flags(treated_alike: bool, parted_after: int | None) -> None:
    detector = create_detector("after", 2, total_epochs=4, after_fraction=0.5)
    replay = DetectorReplay(detector, treated_alike=treated_alike)
    replay.watch(scored(1, 2, 3, 4), torch.tensor([2, 2]))
    assert replay.parted_after == parted_after


def test_what_was_watched_is_remembered_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tllm_plugin.search.forking._MOST_REPLAYS", 2)
    replays, run = Replays(), RunFolder.inside(tmp_path)
    configs = [make_config(tmp_path, "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", name) for name in "abc"]

    def of(number: int) -> DetectorReplay:
        return replays.get(run, RunSpec.of(configs[0]), configs[number], ("one", "other"), scored())

    first, second = of(0), of(1)
    assert of(0) is first and of(1) is second
    third = of(2)
    assert of(2) is third and of(1) is second and of(0) is not first


def test_so_many_combinations_are_not_listed(
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = ",".join(f"0.{number:02}" for number in range(10, 90))
    host = plan(trained, tmp_path, *(f"{key}={values}" for key in ("AFTER_FRACTION", "CE_WEIGHT")))
    monkeypatch.setattr("tllm_plugin.search.embedded.grid", lambda space: pytest.fail("6400 combinations were listed"))
    assert host._waiting() is None
