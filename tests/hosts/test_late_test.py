"""Finished runs that never looked at test data are tested later: by `tllm test`, or by a run that needs them."""

from __future__ import annotations

import logging
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import assert_same_run, make_config, train
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.networks import with_predictions
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.hosts.embedded import recipe, trainer
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.late_test import ensure_tested
from tllm_plugin.hosts.embedded.prerequisites import log_folder
from tllm_plugin.hosts.run_spec import RunSpec
from tllm_plugin.runs.run_folder import RunFolder

VANILLA = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", "vanilla")
NEVER = ("LOG.TEST_FREQ", "-1")


def without_tests(run: RunFolder, folder: Path, *, tested: bool = True) -> RunFolder:
    """Return a copy of a run, `tested` or not, as it would be, had it never looked at test data."""
    copy = RunFolder.inside(shutil.copytree(run.log_folder, folder))
    copy.predictions_npz.unlink(missing_ok=not tested)
    copy.write_metrics(copy.read_metrics().without_results())
    return copy


def contents(run: RunFolder) -> Mapping[Path, bytes]:
    return {path: path.read_bytes() for path in run.log_folder.rglob("*") if path.is_file()}


@pytest.fixture
def untested(trained: Trained, tmp_path: Path) -> RunFolder:
    """Where `make_config(tmp_path, *VANILLA)` expects it."""
    return without_tests(trained.vanilla, log_folder(make_config(tmp_path, *VANILLA)))


@pytest.fixture
def nothing_is_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer.BaseTrainer, "train_epoch", lambda self, epoch: pytest.fail("it was trained"))


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("RUNTIME.PRECISION", "bfloat16", "RUNTIME.CHANNELS_LAST", "True"),
        ("DISTILLER.TYPE", "CID", "CID.WARMUP_EPOCHS", "1"),
        ("DISTILLER.TYPE", "SFTN", "TLLM.DETECTOR.TYPE", "none"),
        ("SOLVER.TRAINER", "base"),
    ],
)
def test_results_are_those_of_a_run_that_looked(
    options: tuple[str, ...], trained: Trained, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    looked = train(tmp_path, *trained.detecting, *options)
    later = without_tests(looked, tmp_path / "some where" / "else")
    before = contents(later)
    cfg = RunSpec.read(later).config()
    metrics = ensure_tested(later, cfg, load_bundle(cfg))
    assert metrics == looked.read_metrics() and metrics.tested
    after = contents(later)
    assert after.pop(later.predictions_npz) == looked.predictions_npz.read_bytes()
    assert after.pop(later.metrics_json) == looked.metrics_json.read_bytes() != before.pop(later.metrics_json)
    assert after == before, "nothing else has changed, the cost of the training least of all"
    # What `compare --answers` finds again is the same, image by image, and is believed only where it is.
    kept = later.read_predictions()
    later.predictions_npz.unlink()
    (again,) = with_predictions([load_run(later.log_folder)])
    assert again.result.predictions is not None
    assert again.result.predictions.labels.equal(kept.labels)
    assert again.result.predictions.prediction.equal(kept.prediction)
    most, *_, least = kept.class_correct.argsort(descending=True).tolist()
    moved = [count - (c == most) + (c == least) for c, count in enumerate(metrics.class_correct)]
    later.write_metrics(replace(metrics, class_correct=tuple(moved)))
    (refused,) = with_predictions([load_run(later.log_folder)])
    assert refused.result.predictions is None
    assert "with other weights or on another device" in caplog.text


def test_the_command_that_a_refusal_quotes(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str], nothing_is_trained: None
) -> None:
    # Neither where its config says nor under its name.
    run = without_tests(trained.vanilla, tmp_path / "with space" / "moved")
    with pytest.raises(ConfigError, match=r"no test results; `tllm test .* tests it") as error:
        load_run(run.log_folder)
    command = shlex.split(str(error.value).split("`")[1])
    assert main(command[1:]) == 0
    accuracy = f"test accuracy {trained.vanilla.read_metrics().test_accuracy:.2%} after 3 epochs: {run.log_folder}"
    assert accuracy in capsys.readouterr().out
    assert_same_run(trained.vanilla, run)
    before = contents(run)
    assert main([*command[1:], str(trained.vanilla.log_folder)]) == 0, "one that was tested stays as it is"
    assert capsys.readouterr().out.count("test accuracy") == 2 and contents(run) == before
    assert load_run(run.log_folder).result.predictions is not None


def test_what_cannot_be_tested(untested: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def told(code: int) -> str:
        assert main(["test", str(untested.log_folder)]) == code
        assert not untested.predictions_npz.exists() and not untested.read_metrics().tested
        return capsys.readouterr().err

    student = untested.log_folder / "student_latest"
    student.rename(tmp_path / "student")
    assert "student_latest" in told(1)
    (tmp_path / "student").rename(student)
    config = untested.read_config()
    untested.write_config(config.replace("STUDENT: digits_student", "STUDENT: digits_teacher"))
    assert "student_latest to fit TinyConvNet" in told(1)
    untested.config_yaml.unlink()
    assert "to be a run of the embedded host, but it has no config.yaml" in told(2)
    untested.write_config("host: {name: repdistiller}\noptions: {}\n")
    assert "to be a run of the embedded host, but it has no config.yaml" in told(2)
    for text, problem in (
        ("", "sections with keys, but there are none"),
        ("- KD", "sections with keys, but there are none"),
        ("DATASET: 3", "`DATASET` to be a section"),
        ("SOLVER: {EPOCHS: {A: 1}}", "`SOLVER.EPOCHS` to be a value"),
        ("DATASET: [", "while parsing"),
    ):
        untested.write_config(text)
        error = told(1)
        assert f"{untested.config_yaml} to be the config of a run" in error and problem in error
    untested.write_config(config)
    untested.write_metrics(replace(untested.read_metrics(), finished=False))
    assert "to be finished, but it has trained 3 epochs" in told(2)
    with pytest.raises(ConfigError, match=r"no test results yet$"):
        load_run(untested.path)


def test_a_tested_run_of_another_host_is_left_alone(
    trained: Trained, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunFolder.inside(shutil.copytree(trained.vanilla.log_folder, tmp_path / "run"))
    run.predictions_npz.unlink()  # RepDistiller's of earlier versions kept counts.
    run.write_config("host: {name: repdistiller}\noptions: {}\n")
    before = contents(run)
    assert main(["test", str(run.log_folder)]) == 0
    assert f"test accuracy {run.read_metrics().test_accuracy:.2%}" in capsys.readouterr().out
    assert contents(run) == before


def test_the_other_runs_are_tested_nevertheless(
    untested: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = without_tests(RunFolder.inside(untested.log_folder), tmp_path / "other", tested=False)
    (tmp_path / "locks").mkdir()
    assert main(["test", str(tmp_path / "locks"), str(untested.log_folder), str(tmp_path / "nothing")]) == 1
    shown = capsys.readouterr()
    assert shown.out.count("test accuracy") == 1 and shown.err.count("tllm: Expected") == 2
    assert untested.has_results() and not other.read_metrics().tested
    record = other.read_flags()
    others = tuple(replace(item, name=f"no {item.name}") for item in record.classes)
    other.write_flags(replace(record, classes=others))
    assert main(["test", str(other.log_folder)]) == 2
    assert "to have the classes that" in capsys.readouterr().err and not other.read_metrics().tested
    other.write_flags(record)
    text = other.read_config()
    other.write_config(text.replace("DEVICE: cpu", "DEVICE: cuda:97").replace("DEVICE: auto", "DEVICE: cuda:97"))
    assert main(["test", str(other.log_folder)]) == 2
    assert main(["test", str(other.log_folder), "--device", "auto"]) == 0
    assert other.predictions_npz.read_bytes() == untested.predictions_npz.read_bytes()


@pytest.mark.parametrize("by_resume", [False, True])
def test_results_that_are_lost_or_damaged_are_made_again(
    by_resume: bool, trained: Trained, tmp_path: Path, nothing_is_trained: None
) -> None:
    folder = log_folder(make_config(tmp_path, *VANILLA))
    run = RunFolder.inside(shutil.copytree(trained.vanilla.log_folder, folder))
    kept = run.metrics_json.read_bytes(), run.predictions_npz.read_bytes()
    record = run.read_predictions()
    wrong = replace(record, prediction=(record.prediction + 1) % 10)

    def spoil(how: str) -> None:
        if how == "deleted":
            run.predictions_npz.unlink()
        elif how == "damaged":
            run.predictions_npz.write_bytes(kept[1][:200])
        elif how == "disagreeing":
            run.write_predictions(wrong)
        else:
            run.write_metrics(run.read_metrics().without_results())

    for how in ("deleted", "damaged", "disagreeing", "untested"):
        spoil(how)
        assert not run.has_results()
        if by_resume:
            train(tmp_path, *VANILLA, "LOG.TEST_FREQ", "0", resume=True)
        else:
            assert main(["test", str(run.log_folder)]) == 0
        assert (run.metrics_json.read_bytes(), run.predictions_npz.read_bytes()) == kept, how


def test_a_run_that_cannot_be_written_is_used_untested(
    untested: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(self: RunFolder, record: object) -> None:
        raise TLLMError("Cannot write it: Read-only file system")

    monkeypatch.setattr(RunFolder, "write_predictions", refuse)
    cfg = make_config(tmp_path, *VANILLA)
    assert not recipe.ensure_trained(cfg, load_bundle(cfg)).read_metrics().tested
    assert "is not tested: Cannot write it: Read-only file system" in caplog.text
    assert main(["test", str(untested.log_folder)]) == 1


def test_a_run_that_is_needed_is_tested_if_the_other_one_is(
    untested: RunFolder, trained: Trained, tmp_path: Path, nothing_is_trained: None, caplog: pytest.LogCaptureFixture
) -> None:
    def ensured(*options: str) -> RunFolder:
        cfg = make_config(tmp_path, *VANILLA, *options)
        return recipe.ensure_trained(cfg, load_bundle(cfg))

    assert not ensured(*NEVER).read_metrics().tested
    (untested.log_folder / "latest").unlink()
    # A default of a key that it does not read has changed since.
    untested.write_config(untested.read_config().replace("TEMPERATURE: 4.0", "TEMPERATURE: 3.0"))
    student = untested.log_folder / "student_latest"
    student.rename(tmp_path / "student")
    assert not ensured().read_metrics().tested and "vanilla is not tested: Expected" in caplog.text
    (tmp_path / "student").rename(student)
    tested = ensured("LOG.TEST_FREQ", "0").read_metrics()
    assert tested == trained.vanilla.read_metrics() and tested.tested


def test_resuming_a_finished_run_leaves_its_results(tmp_path: Path, nothing_is_trained: None, trained: Trained) -> None:
    folder = log_folder(make_config(tmp_path, *VANILLA))
    run = RunFolder.inside(shutil.copytree(trained.vanilla.log_folder, folder))
    kept = run.metrics_json.read_bytes(), run.predictions_npz.read_bytes()
    for options in (NEVER, ()):
        train(tmp_path, *VANILLA, *options, resume=True)
        assert (run.metrics_json.read_bytes(), run.predictions_npz.read_bytes()) == kept
    run.predictions_npz.unlink()
    run.metrics_json.write_text("{")
    train(tmp_path, *VANILLA, resume=True)
    assert_same_run(trained.vanilla, run)
