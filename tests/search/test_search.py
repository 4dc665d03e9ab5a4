"""`tllm search` as a whole, on digits, with a detector whose flags are known."""

from __future__ import annotations

import io
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from optuna.pruners import BasePruner
from optuna.study import Study
from optuna.trial import FrozenTrial
from rich.console import Console

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import BASE, CONFIG, EPOCHS, HOLDOUT_FRACTION, assert_same_run, make_config, train
from tests.search.staged import SAVING
from tllm_plugin.cli import main
from tllm_plugin.cli.main import build_parser
from tllm_plugin.cli.search import _words, table
from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.runtime import choose_device
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.runs.search_file import SearchRecord
from tllm_plugin.search import pruning

STAGED = ("TLLM.DETECTOR.TYPE", "staged_for_tests", "TLLM.HOLDOUT.SEARCH_FRACTION", "0.1")
ETAS = ("0.2", "0.8", "0.9")
ETA = "TLLM.DETECTOR.ETA"


def words(trained: Trained, prefix: Path, *more: str) -> list[str]:
    cfg = ["search", "--cfg", str(CONFIG), *more]
    return [*cfg, *BASE, "LOG.PREFIX", str(prefix), *trained.taught, *STAGED]


def load(prefix: Path) -> tuple[Path, SearchRecord]:
    (path,) = prefix.glob("digits/*-search-*/search-*.json")
    return path.parent, SearchRecord.read(path)


@pytest.fixture(scope="module")
def searched(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> Path:
    prefix = tmp_path_factory.mktemp("searched")
    assert main(words(trained, prefix, "--eta", *ETAS, "--retrain")) == 0
    return prefix


@pytest.fixture(scope="module")
def bundle() -> DataBundle:
    return load_bundle(make_config("unused"))


def test_scores_are_those_of_the_students_on_the_search_hold_out(searched: Path, bundle: DataBundle) -> None:
    folder, record = load(searched)
    assert [trial.values for trial in record.trials] == [{"TLLM.DETECTOR.ETA": float(eta)} for eta in ETAS[::-1]]
    for trial in (*record.trials, *record.baselines):
        run = RunFolder.inside(folder / trial.run)
        split = run.read_split()
        holdouts = [set(part) for part in (split.holdout, split.search_holdout)]
        assert not holdouts[0] & holdouts[1] and record.holdout_samples == len(holdouts[1]) == 100
        # Where the run computed: a GPU's convolutions round otherwise.
        device = choose_device(make_config("unused"))
        student = create_model("digits_student", num_classes=10, in_channels=1).eval().to(device)
        student.load_state_dict(torch.load(run.log_folder / "student_latest", weights_only=True)["model"])
        right, count = [0] * 10, [0] * 10
        rows = torch.tensor(split.search_holdout)
        for image, label in bundle.eval_loader(rows, batch_size=7, device=device, split="train"):
            with torch.no_grad():
                predicted = student(image)[0].argmax(1)
            for one, other in zip(predicted.tolist(), label.tolist(), strict=True):
                right[other] += one == other
                count[other] += 1
        assert count == [10] * 10
        accuracy = sum(r / n for r, n in zip(right, count, strict=True)) / 10
        assert trial.score == pytest.approx(accuracy) and len(trial.curve) == EPOCHS
        assert trial.curve[-1] == pytest.approx(accuracy)
    scores = [trial.score or 0.0 for trial in record.trials]
    assert record.chosen is not None and record.chosen.score == max(scores)
    assert record.chosen.p_value == 1.0 and record.chosen.difference == 0.0


def test_trials_equal_the_runs_alone_and_share_what_they_can(
    trained: Trained,
    searched: Path,
    tmp_path: Path,
) -> None:
    folder, record = load(searched)
    assert [trial.shared_epochs for trial in record.trials] == [1, EPOCHS, 2]
    first = record.trials[0].run
    assert [trial.parent for trial in record.trials] == [record.baselines[0].run, first, first]
    assert record.baselines[0].title == "without detection" and record.baselines[0].run == "taught"
    for eta, trial in zip(ETAS[::-1], record.trials, strict=True):
        alone = train(tmp_path / eta, *trained.taught, *STAGED, "TLLM.DETECTOR.ETA", eta, *SAVING)
        shared = RunFolder.inside(folder / trial.run)
        assert_same_run(alone, shared, untested=True)
        assert alone.search_curves_npz.read_bytes() == shared.search_curves_npz.read_bytes()


def test_no_training_sees_a_hold_out(searched: Path, bundle: DataBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, record = load(searched)
    split = RunFolder.inside(folder / "taught").read_split()
    (final,) = folder.glob("final-*")
    final_split = RunFolder.inside(final).read_split()
    assert final_split.search_holdout == () and final_split.holdout == split.holdout
    assert len(bundle.train_labels) * HOLDOUT_FRACTION == pytest.approx(len(split.holdout), rel=0.1)
    seen: dict[str, set[int]] = {}
    for name, more in (("search", ()), ("final", ("TLLM.HOLDOUT.SEARCH_FRACTION", "0.0"))):
        options = ("DISTILLER.TYPE", "NONE", *STAGED, "TLLM.DETECTOR.TYPE", "none", *more)
        taken = seen.setdefault(name, set())
        original = BaseTrainer.train_iter
        monkeypatch.setattr(
            BaseTrainer,
            "train_iter",
            lambda self, image, target, index, epoch, taken=taken, original=original: (
                taken.update(index.tolist()),
                original(self, image, target, index, epoch),
            )[1],
        )
        train(searched / "looked-at" / name, *options, "SOLVER.EPOCHS", "1")
        monkeypatch.undo()
    everything = set(range(len(bundle.train_labels)))
    assert seen["search"] == everything - set(split.holdout) - set(split.search_holdout)
    assert seen["final"] == everything - set(split.holdout)


def test_nothing_that_is_chosen_from_sees_test_data(
    searched: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, record = load(searched)
    (final,) = folder.glob("final-*")
    assert RunFolder.inside(final).read_metrics().tested
    for trial in (*record.trials, *record.baselines):
        assert not RunFolder.inside(folder / trial.run).read_metrics().tested

    looks: list[str] = []
    original = BaseTrainer.test
    monkeypatch.setattr(BaseTrainer, "test", lambda self: (looks.append(Path(self.log_path).name), original(self))[1])
    vanilla = ("TLLM.DETECTOR.TYPE", "reference", "DISTILLER.TEACHER_EPOCHS", "1")
    command = ["search", "--cfg", str(CONFIG), "--eta", "0.1", *BASE, "LOG.PREFIX", str(tmp_path), *vanilla]
    assert main(command) == 0
    searched_runs = {path.parts[-3] for path in tmp_path.glob("digits/*/tllm/metrics.json")}
    assert len(searched_runs) == 2 and looks == [], "a teacher and a vanilla student"
    assert main([*command[:3], "--retrain", *command[3:]]) == 0
    again = [*command[:3], "--retrain", *command[3:], "LOG.TEST_FREQ", "-1", "LOG.PREFIX", str(tmp_path / "never")]
    assert main(again) == 0 and "test accuracy not measured" in " ".join(capsys.readouterr().out.split())
    final_too = {path.name for path in tmp_path.glob("digits/*/*") if path.name.startswith("final")}
    own = {path.parts[-3] for path in tmp_path.glob("digits/*/tllm/metrics.json")} - searched_runs
    assert set(looks) == own | final_too and len(own) == 2, "the final student has a teacher and a reference of its own"


def test_giving_the_command_again_trains_nothing(
    trained: Trained,
    searched: Path,
    epochs_trained: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    folder, record = load(searched)
    assert main(words(trained, searched, "--eta", *ETAS)) == 0
    assert epochs_trained == []
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert record.chosen is not None
    assert [row[0].removesuffix(" *") for row in rows] == ["without detection", "trial 0", "trial 1", "trial 2"]
    assert [row[0] for row in rows if row[0].endswith("*")] == [f"{record.chosen.title} *"]
    assert [row[4] for row in rows] == ["3 of 3", "2 of 3", "0 of 3", "1 of 3"]
    assert [row[5] for row in rows[1:]] == ["3 (1)", "3 (1)", "3 (1), 8 (2)"]
    assert "saved: 6 epochs were trained instead of 9" in shown
    assert ("within noise" in shown) == any("within noise" in warning for warning in record.warnings)
    following = shlex.split(next(line for line in shown.splitlines() if line.startswith("next: "))[6:])
    assert following[:2] == ["tllm", "train"]
    assert following[-2:] == ["TLLM.DETECTOR.ETA", str(record.chosen.values["TLLM.DETECTOR.ETA"])]


def test_what_to_do_next_trains_the_choice_on_everything_as_a_run_of_its_own(
    trained: Trained,
    searched: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    train(tmp_path, *trained.taught, *STAGED)  # What a user may have before.
    capsys.readouterr()
    assert main(words(trained, tmp_path, "--eta", *ETAS)) == 0
    shown = capsys.readouterr().out
    following = shlex.split(next(line for line in shown.splitlines() if line.startswith("next: "))[6:])
    assert main(following[1:]) == 0
    (run,) = map(RunFolder.inside, tmp_path.glob("digits/*-chosen-*"))
    (final,) = map(RunFolder.inside, tmp_path.glob("digits/*-search-*/final-*"))
    assert run.read_split() == final.read_split() and run.read_split().search_holdout == ()
    assert_same_run(final, run)


def test_other_keys_make_another_search_that_shares_what_is_equal(
    trained: Trained,
    searched: Path,
    tmp_path: Path,
    epochs_trained: list[int],
) -> None:
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    folder, record = load(tmp_path)
    assert main([*words(trained, tmp_path, "--eta", *ETAS), "TLLM.LABEL_SMOOTHING", "0.3"]) == 0
    assert epochs_trained == [2, 3, 3], "the student without detection is there"
    (other,) = (
        found for found in map(SearchRecord.read, folder.glob("search-*.json")) if found.trials != record.trials
    )
    for search, smoothing in ((record, 0.1), (other, 0.3)):
        configs = [RunSpec.read(RunFolder.inside(folder / trial.run)).config() for trial in search.trials]
        assert {cfg.TLLM.LABEL_SMOOTHING for cfg in configs} == {smoothing}


def test_a_lost_run_is_trained_again_and_a_damaged_one_once_it_is_removed(
    trained: Trained,
    searched: Path,
    tmp_path: Path,
    epochs_trained: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.copytree(searched, tmp_path, dirs_exist_ok=True)
    folder, record = load(tmp_path)
    shutil.rmtree(folder / record.trials[2].run)
    command = words(trained, tmp_path, "--eta", *ETAS)
    assert main(command) == 0
    assert epochs_trained == [3]

    def scores() -> list[object]:
        return sorted((str(trial.values), trial.score) for trial in load(tmp_path)[1].trials)

    expected = sorted((str(trial.values), trial.score) for trial in record.trials)
    assert scores() == expected
    run = RunFolder.inside(folder / record.trials[1].run)
    run.search_curves_npz.write_bytes(run.search_curves_npz.read_bytes()[:100])
    capsys.readouterr()
    assert main(command) == 1
    assert f"remove {run.log_folder}, and the search trains that run again" in capsys.readouterr().err
    shutil.rmtree(run.log_folder)
    assert main(command) == 0
    assert scores() == expected


def test_a_reference_that_was_trained_again_makes_another_search(
    trained: Trained,
    tmp_path: Path,
    epochs_trained: list[int],
) -> None:
    reference = shutil.copytree(trained.vanilla.log_folder, tmp_path / "vanilla")
    options = ("TLLM.DETECTOR.TYPE", "reference", "TLLM.DETECTOR.REFERENCE", str(reference))
    command = [*words(trained, tmp_path, "--no-baseline", "--eta", "0.1"), *options]
    assert main(command) == 0 and epochs_trained == [1, 2, 3]
    assert main(command) == 0 and len(epochs_trained) == 3
    untaught = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none")
    again = train(tmp_path / "again", *untaught, "EXPERIMENT.SEED", "5")
    shutil.copyfile(again.curves_npz, RunFolder.inside(reference).curves_npz)
    epochs_trained.clear()
    assert main(command) == 0 and epochs_trained == [1, 2, 3]
    assert len(list(tmp_path.glob("digits/*-search-*/trial-*"))) == 2


class PrunesTheEarliest(BasePruner):
    """Stops the trial that flags first, after its second epoch."""

    def prune(self, study: Study, trial: FrozenTrial) -> bool:
        return trial.params[ETA] == 0.1 and trial.last_step == 2


def test_a_pruned_trial_is_never_chosen_and_is_continued_without_pruning(
    trained: Trained,
    tmp_path: Path,
    epochs_trained: list[int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setitem(pruning._MAKERS, "median", lambda epochs: PrunesTheEarliest())
    command = words(trained, tmp_path, "--eta", "0.9", "0.1", "--no-baseline")
    assert main([*command[:3], "--prune", "median", *command[3:]]) == 0
    assert epochs_trained == [1, 2, 3, 2], "without a baseline the second trial begins where it parts from the first"
    _, record = load(tmp_path)
    whole, pruned = record.trials
    assert (pruned.pruned_after, pruned.score, pruned.p_value, len(pruned.curve)) == (2, None, None, 2)
    assert record.best == whole.number and record.baselines == () and not whole.pruned_after
    shown = capsys.readouterr().out
    assert f"pruned at {100 * pruned.curve[-1]:.1f}" in shown and "the same command without --prune continues" in shown
    assert "saved: 4 epochs were trained instead of 6" in shown
    epochs_trained.clear()

    assert main(command) == 0
    assert epochs_trained == [3]
    folder, record = load(tmp_path)
    assert [trial.pruned_after for trial in record.trials] == [0, 0] and record.trials[1].values == {ETA: 0.1}
    alone = train(tmp_path / "alone", *trained.taught, *STAGED, ETA, "0.1", *SAVING)
    assert_same_run(alone, RunFolder.inside(folder / record.trials[1].run), untested=True)


def test_every_config_error_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bad = ["search", "--cfg", str(CONFIG), "--eta", "0.1", "7", "--space", "CE_WEIGT=1,2", "CE_WEIGHT=1:2"]
    assert main([*bad, "--checkpoint-every", "0", "SOLVER.LRR", "1", "LOG.PREFIX", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    for part in (
        "Expected `SOLVER key` to be one of",
        "Expected `TLLM.DETECTOR.ETA` to be in (0, 1), but got 7.0",
        "Expected `--space key` to be one of",
        "Expected `--trials N` with a range, but got none for TLLM.CE_WEIGHT",
        "Expected `--checkpoint-every` to be at least 1, but got 0",
    ):
        assert part in error
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("etas", [("0.1,0.2",), ("0.1,", "0.2"), ("0.1", "0.2,")])
def test_etas_may_have_commas(etas: tuple[str, ...]) -> None:
    options = build_parser().parse_args(["search", "--cfg", "x", "--eta", *etas, "SOLVER.EPOCHS", "6"])
    assert _words(options) == ([f"{ETA}=0.1,0.2"], ["SOLVER.EPOCHS", "6"], [])


def test_an_eta_that_is_no_number_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--cfg", str(CONFIG), "--eta", "much", "LOG.PREFIX", str(tmp_path)]) == 2
    assert capsys.readouterr().err == "tllm: Expected numbers after `--eta`, but got 'much'\n"


def test_nothing_is_cut_off_in_a_narrow_console(searched: Path) -> None:
    _, record = load(searched)
    record = replace(record, space=(f"{ETA}=0.2", "TLLM.DETECTOR.TYPE=reference", "TLLM.LABEL_SMOOTHING=0.1"))
    values = {ETA: 2.287e-05, "TLLM.DETECTOR.TYPE": "reference", "TLLM.LABEL_SMOOTHING": 0.1234}
    record = replace(record, trials=tuple(replace(trial, values=values) for trial in record.trials))
    for width in (60, 80):
        console = Console(width=width, file=io.StringIO())
        console.print(table(record))
        assert "…" not in console.file.getvalue()


def test_vanilla_runs_are_not_searched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["DISTILLER.TYPE", "NONE", "SOLVER.TRAINER", "base", "LOG.PREFIX", str(tmp_path / "out")]
    assert main(["search", "--cfg", str(CONFIG), *options]) == 2
    error = capsys.readouterr().err
    assert "Expected `DISTILLER.TYPE` to be a distiller for a search" in error
    assert "Expected `SOLVER.TRAINER` to be tllm for a search" in error


def test_help_names_every_key_that_can_be_searched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["search", "--help"]) == 0
    shown = capsys.readouterr().out
    keys = " ".join(shown.split()).partition("by their full name or its last part: ")[2].partition(" as a list")[0]
    detection, treatment = keys.split(", ")[:-4], keys.split(", ")[-4:]
    assert treatment == ["LABEL_SMOOTHING", "CE_WEIGHT", "BALANCE", "MIN_ROWS"]
    assert {"TYPE", "SCORE", "ETA", "FDR", "WARMUP_EPOCHS", "SMOOTHING", "AFTER_FRACTION"} <= set(detection)
    assert "--space ETA=0.01:0.2:log CE_WEIGHT=0.5:8:log LABEL_SMOOTHING=0:0.2 --trials 20" in shown


def test_a_result_from_before_pruning_is_read(searched: Path, tmp_path: Path) -> None:
    (path,) = searched.glob("digits/*-search-*/search-*.json")
    old = tmp_path / "search.json"
    text = path.read_text()
    assert '"pruned_after": 0' in text
    # Nor was there a digest.
    old.write_text(re.sub(r',\s*("pruned_after": 0|"digest": "\w+")', "", text))
    assert SearchRecord.read(old) == SearchRecord.read(path)


def test_a_damaged_result_is_refused(searched: Path, tmp_path: Path) -> None:
    (path,) = searched.glob("digits/*-search-*/search-*.json")
    damaged = tmp_path / "search.json"
    text = path.read_text()
    for content, message in (
        (text.replace('"version": 1', '"version": 2'), "which a newer TLLM wrote"),
        (text.replace('"best": ', '"best": 9'), "does not match its digest"),
        (text[:-40], "truncated"),
    ):
        damaged.write_text(content)
        with pytest.raises(FileFormatError, match=message):
            SearchRecord.read(damaged)
