"""What a run was trained on is part of what it is: nothing that was trained on other data is used without a word."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.hosts.digits_runs import CONFIG
from tests.hosts.folder_runs import BASE, VANILLA, config
from tests.hosts.small_images import make_images
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.networks import teacher_checkpoint
from tllm_plugin.analysis.teachers import teacher_run
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts import same_data
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.runs import data_file
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.shared_prefix import run_sharing


@pytest.fixture
def images(tmp_path: Path) -> Path:
    make_images(tmp_path / "images")
    return tmp_path / "images"


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_data, "_told", set())


def rename(images: Path, old: str, new: str) -> None:
    for part in ("train", "val"):
        (images / part / old).rename(images / part / new)


def rename_last(images: Path) -> None:
    rename(images, "n0", "z")


def remove_file(images: Path) -> None:
    (images / "train" / "n3" / "000.png").unlink()


def forget(run: RunFolder) -> None:
    """Leave a run behind as an earlier version would have."""
    run.data_json.unlink()
    for name in ("latest", "student_latest", "tllm/student_best_holdout"):
        state = torch.load(run.log_folder / name, weights_only=True)
        state.pop("data", None)
        torch.save(state, run.log_folder / name)


CHANGES = [
    (rename_last, "class 'n0' is now 'z'"),
    (remove_file, "1 training image was removed, the first in class 'n3'"),
]


@pytest.mark.parametrize(("change", "told"), CHANGES)
def test_a_finished_run_is_not_used_for_other_data(images: Path, change: Callable[[Path], None], told: str) -> None:
    cfg = config(images, *VANILLA)
    run = recipe.run(cfg)
    assert recipe.ensure_trained(cfg, load_bundle(cfg)).path == run.path
    change(images)
    with pytest.raises(ConfigError, match=f"trained on, but {told}"):
        recipe.ensure_trained(cfg, load_bundle(cfg))


@pytest.mark.parametrize(("change", "told"), CHANGES)
@pytest.mark.parametrize("trainer", ["tllm", "base"])
def test_resume(images: Path, trainer: str, change: Callable[[Path], None], told: str) -> None:
    cfg = config(images, *VANILLA, "SOLVER.TRAINER", trainer)
    run = recipe.run(cfg)
    run.data_json.unlink()  # The checkpoint knows it, too.
    before = (run.log_folder / "latest").read_bytes()
    change(images)
    with pytest.raises(ConfigError, match=f"trained on, but {told}.*resume with the same data"):
        recipe.run(cfg, resume=True)
    assert (run.log_folder / "latest").read_bytes() == before


def test_a_renamed_class_gets_another_teacher_and_reference(images: Path) -> None:
    options = ("DISTILLER.TYPE", "KD", "EXPERIMENT.NAME", "kd")
    recipe.run(config(images, *options))
    out = images.parent / "out" / "digits"

    def trained(role: str) -> set[str]:
        return {path.name for path in out.iterdir() if path.name.startswith(role) and path.is_dir()}

    assert len(trained("teacher-")) == len(trained("vanilla-")) == 1
    rename_last(images)
    recipe.run(config(images, *options), overwrite=True)
    for role in ("teacher-", "vanilla-"):
        first, second = sorted(trained(role), key=len)
        assert second.startswith(f"{first}-"), "the first one stays"
    # Both are found from now on, each by its data.
    known = trained("")
    recipe.run(config(images, *options), overwrite=True)
    rename(images, "z", "n0")
    recipe.run(config(images, *options), overwrite=True)
    assert trained("") == known


def test_summaries_are_of_the_teacher_that_the_run_had(images: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("DISTILLER.TYPE", "KD", "TLLM.DETECTOR.TYPE", "none")
    recipe.run(config(images, *options, "EXPERIMENT.NAME", "kd"))
    (first,) = (images.parent / "out" / "digits").glob("teacher-*")
    record = RunFolder.inside(first).read_metrics()
    none_right = replace(record, test_accuracy=0.0, class_correct=(0,) * len(record.class_total))
    RunFolder.inside(first).write_metrics(none_right)
    rename_last(images)
    words = [*BASE, "DATASET.PATH", str(images), "LOG.PREFIX", str(images.parent / "out"), *options]
    assert main(["train", "--cfg", str(CONFIG), *words, "EXPERIMENT.NAME", "again"]) == 0
    (second,) = (images.parent / "out" / "digits").glob(f"{first.name}-*")
    accuracy = RunFolder.inside(second).read_metrics().test_accuracy
    assert accuracy and f" {accuracy:.2%} " in capsys.readouterr().out.partition("teacher ")[2].splitlines()[0]
    for name, teacher in (("kd", first), ("again", second)):
        run = load_run(images.parent / "out" / "digits" / name)
        assert teacher_checkpoint(run) == teacher / "student_latest"
    RunFolder.inside(second).data_json.write_text("{")
    with pytest.raises(FileFormatError, match=r"data\.json"):
        teacher_run(run)


def test_runs_of_earlier_versions(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(images, *VANILLA)
    run = recipe.run(cfg)
    forget(run)
    caplog.set_level(logging.WARNING)
    for _ in range(2):
        assert recipe.ensure_trained(cfg, load_bundle(cfg)).path == run.path
    recipe.run(cfg, resume=True)
    assert sum("did not record its data" in message for message in caplog.messages) == 1
    forget(run)
    rename_last(images)
    for use in (lambda: recipe.ensure_trained(cfg, load_bundle(cfg)), lambda: recipe.run(cfg, resume=True)):
        with pytest.raises(ConfigError, match="class 'n0' is now 'z'"):
            use()


def test_what_is_written(images: Path) -> None:
    cfg = config(images, *VANILLA, "LOG.SAVE_CHECKPOINT_FREQ", "1")
    run = recipe.run(cfg)
    identity = load_bundle(cfg).identity
    assert run.read_data() == identity and len(identity.mean) == 3 and identity.image_size == 8
    for name in ("latest", "student_latest", "epoch_1", "student_1", "tllm/student_best_holdout"):
        state = torch.load(run.log_folder / name, weights_only=True)
        assert data_file.from_checkpoint(state, name) == identity, name


def test_other_test_images_are_told(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    cfg = config(images, *VANILLA)
    run = recipe.run(cfg)
    (images / "val" / "n3" / "000.png").unlink()
    caplog.set_level(logging.WARNING)
    assert recipe.ensure_trained(cfg, load_bundle(cfg)).path == run.path
    assert "its test data are others by now: 1 test image was removed" in caplog.text


def test_a_named_teacher(images: Path, caplog: pytest.LogCaptureFixture) -> None:
    teacher = recipe.run(config(images, *VANILLA, "DISTILLER.STUDENT", "digits_teacher")).log_folder / "student_latest"
    elsewhere = images.parent / "teacher.pth"
    elsewhere.write_bytes(teacher.read_bytes())
    taught = ("DISTILLER.TYPE", "KD", "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", "kd")
    remove_file(images)
    caplog.set_level(logging.WARNING)
    recipe.run(config(images, *taught, "DISTILLER.TEACHER_CHECKPOINT", str(elsewhere)))
    assert caplog.text.count("was trained on other data") == 1
    rename_last(images)
    run = RunFolder.inside(images.parent / "out" / "digits" / "kd")
    before = (run.log_folder / "latest").read_bytes(), run.metrics_json.read_bytes()
    for checkpoint in (elsewhere, teacher):
        with pytest.raises(ConfigError, match="Expected the classes .*class 'n0' is now 'z'"):
            recipe.run(config(images, *taught, "DISTILLER.TEACHER_CHECKPOINT", str(checkpoint)), overwrite=True)
    # What was to be overwritten is still there.
    assert ((run.log_folder / "latest").read_bytes(), run.metrics_json.read_bytes()) == before


def test_a_named_reference(images: Path) -> None:
    vanilla = recipe.run(config(images, *VANILLA))
    named = ("TLLM.DETECTOR.REFERENCE", str(vanilla.path), "EXPERIMENT.NAME", "ls", "DISTILLER.TYPE", "KD")
    recipe.run(config(images, *named))
    # As many images as before, so that the hold-out is the same.
    rename_last(images)
    with pytest.raises(ConfigError, match="REFERENCE.*class 'n0' is now 'z'"):
        recipe.run(config(images, *named), overwrite=True)


def test_nothing_is_shared_with_a_run_on_other_data(images: Path) -> None:
    teacher = recipe.run(config(images, *VANILLA, "DISTILLER.STUDENT", "digits_teacher")).log_folder / "student_latest"
    options = ("DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CHECKPOINT", str(teacher))
    base = recipe.run(config(images, *options, "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", "base"))
    (images / "train" / "n3" / "000.png").rename(images / "train" / "n3" / "999.png")
    trial = config(images, *options, "TLLM.DETECTOR.TYPE", "after", "EXPERIMENT.NAME", "trial")
    with pytest.raises(ConfigError, match="names or sizes of training files are others"):
        run_sharing([base], trial)
