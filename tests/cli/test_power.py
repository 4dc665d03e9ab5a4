"""What `tllm power`, `validate` and a run say about what can be found, and what the report says afterwards."""

from __future__ import annotations

import logging
import re
import shutil
from pathlib import Path

import pytest
import torch

from tests.hosts.digits_runs import make_config
from tllm_plugin.analysis.findable import findable_of
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.study import build_study
from tllm_plugin.cli import main
from tllm_plugin.core.power import Setting, smallest_drop
from tllm_plugin.data import load_data
from tllm_plugin.hosts import power
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.report.findings import findings

RECORDED = Path(__file__).resolve().parents[1] / "hosts/recorded/digits"
DIGITS = "tllm/embedded/digits.yaml"


def test_power_of_stated_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["power", "--classes", "20", "--images", "500", "TLLM.HOLDOUT.FRACTION", "0.1", "SOLVER.EPOCHS", "100"]
    assert main(words) == 0
    told = " ".join(capsys.readouterr().out.split())
    drop = smallest_drop(Setting(classes=20, epochs=100), 50)
    assert drop is not None
    points = f"{-(-1000 * drop // 10):.0f}"
    assert f"hold-out of 50 images of each of 20 classes: a class that loses {points} points" in told
    assert "of 5 points, TLLM.DETECTOR.ETA has to be smaller than 0.05" in told
    assert re.search(rf"0\.1 │ 50 │ {points} points", told)
    assert main([*words, "--changed", "0"]) == 0
    assert f"loses {points} points" not in capsys.readouterr().out


def test_power_when_nothing_can_be_flagged(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["power", "--classes", "5", "--images", "160", "SOLVER.EPOCHS", "100", "TLLM.HOLDOUT.FRACTION"]
    assert main([*words, "0.05"]) == 0
    told = capsys.readouterr().out
    found = re.search(r"NOTHING CAN BE FLAGGED: with 8 hold-out images .*FRACTION (0\.\d+) is the least", told)
    assert found
    assert main([*words, found[1]]) == 0
    assert "NOTHING" not in capsys.readouterr().out
    assert main([*words, str(float(found[1]) - 0.01)]) == 0
    assert "NOTHING" in capsys.readouterr().out
    assert main([*words, "0.3", "SOLVER.EPOCHS", "8"]) == 0
    assert "NOTHING CAN BE FLAGGED: the run has 8 epochs, and `reference` flags" in capsys.readouterr().out


def test_validate_tells_what_can_be_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", DIGITS]) == 0
    told = capsys.readouterr().out
    counts = torch.bincount(load_data("digits").train_labels)
    images = round(0.2 * int(counts.sum()) / 10)
    assert f"hold-out of {images} images of each of 10 classes" in told and told.count("\n") == 3
    # Of data that are not here, nothing is said.
    (tmp_path / "a.yaml").write_text("DATASET: {TYPE: imagefolder, PATH: /nowhere}\nSOLVER: {TRAINER: tllm}\n")
    assert main(["validate", str(tmp_path / "a.yaml")]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'a.yaml'}: fine\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "one of the arguments --cfg and --classes is required"),
        (["--classes", "3"], "`--classes` and `--images` together"),
        (["--classes", "1", "--images", "9"], "to be at least 2"),
        (["--cfg", DIGITS, "TLLM.DETECTOR.TYPE", "none"], "a detector that can be simulated (reference, imitation)"),
        (["--cfg", DIGITS, "--changed", "2"], "`changed` to be"),
    ],
)
def test_bad_use(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["power", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_run_says_it_at_its_start_and_warns_again_at_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "_told", set())
    few = ("TLLM.HOLDOUT.FRACTION", "0.05", "SOLVER.EPOCHS", "1", "EXPERIMENT.NAME", "kd", "DISTILLER.TYPE", "KD")
    with caplog.at_level(logging.INFO):
        recipe.run(make_config(tmp_path, *few))
    told = [record.getMessage() for record in caplog.records if "CAN BE FLAGGED" in record.getMessage()]
    # Before the teacher is trained, again if the reference says more, and at the end.
    assert 2 <= len(told) <= 3 and told[-1] == told[-2] and told[0] == caplog.records[0].getMessage()
    assert told[0].startswith("NOTHING CAN BE FLAGGED: with 6 hold-out images of each of 10 classes, `reference` ")
    assert all(record.levelno == logging.WARNING for record in caplog.records if record.getMessage() == told[0])


def test_the_report_says_what_could_have_been_found(tmp_path: Path) -> None:
    shutil.copytree(RECORDED, tmp_path / "digits")
    runs = [load_run(path) for path in sorted((tmp_path / "digits").iterdir())]
    taught = next(run for run in runs if run.flags is not None and run.teacher)
    found = findable_of(taught)
    assert found is not None and taught.flags is not None and taught.curves is not None
    assert (found.images, found.setting.classes) == (taught.flags.classes[0].holdout_count, 10)
    vanilla = next(run for run in runs if run.name.startswith("vanilla"))
    assert vanilla.curves is not None
    # By hand: the answers that the two runs give differently at the last epoch, on the classes that were not flagged.
    last = taught.curves.epochs[-1]
    differ = taught.curves.samples_at(last).correct != vanilla.curves.samples_at(last).correct
    judged = torch.tensor([label not in taught.flags.flagged for label in taught.curves.labels.tolist()])
    assert found.setting.changed == pytest.approx(float(differ[judged].double().mean()), abs=0.005)
    sentences = findings(build_study(runs))
    assert any("NOTHING CAN BE FLAGGED" in text or "points of accuracy throughout" in text for text in sentences)
