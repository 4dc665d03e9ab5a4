"""`tllm compare` on planted runs, and on checkpoints of real networks."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from tests.analysis.planted_runs import write_run
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.cli import main
from tllm_plugin.models import create_model
from tllm_plugin.runs.atomic import save_torch


@pytest.fixture
def runs(tmp_path: Path) -> dict[str, str]:
    return {
        "vanilla": str(write_run(tmp_path / "vanilla")),
        "vanilla-1": str(write_run(tmp_path / "vanilla-1", seed=1)),
        "kd": str(write_run(tmp_path / "kd", method="KD", hurt=(3, 8))),
        "tllm": str(write_run(tmp_path / "tllm", method="KD", detector="reference", flagged=(3, 8))),
    }


def test_table_json_csv_markdown(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    files = {kind: tmp_path / f"out.{kind}" for kind in ("json", "csv", "markdown")}
    written = [word for kind, path in files.items() for word in (f"--{kind}", str(path))]
    assert main(["compare", *runs.values(), *written]) == 0
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    content = json.loads(files["json"].read_text())
    assert content["vanilla"]["test_accuracy"]["n"] == 2
    kd, tllm = content["methods"]
    assert rows[0][:2] == ["vanilla", "2"] and [row[0] for row in rows[1:3]] == ["KD", "TLLM (KD)"]
    assert kd["undistillable_fdr_5_percent"]["found"]["mean"] == 2 and kd["paired_by_image"]
    assert kd["undistillable"]["null"]["source"] == "vanilla"
    assert (kd["flagged"]["mean"], tllm["flagged"]["mean"]) == (0, 2)
    assert kd["drop_over_5_points"]["null"]["source"] == "vanilla"
    assert f"{kd['undistillable']['found']['mean']:.0f} of 12 (null" in rows[1][3]
    assert rows[3][:3] == ["teacher resnet20", "", "not known"]
    assert {row[0] for row in rows[4:6]} == {"class 0003", "class 0008"} and all("*" in row[2] for row in rows[4:6])

    lines = list(csv.DictReader(io.StringIO(files["csv"].read_text())))
    assert len(lines) == 2 * 12 == len(content["classes"])
    for line, record in zip(lines, content["classes"], strict=True):
        assert float(line["delta_acc"]) == pytest.approx(record["delta_acc"])
        assert record["low"] <= record["delta_acc"] <= record["high"]
    markdown = files["markdown"].read_text()
    assert markdown.count("| --- |") >= 2 and "| KD | 1 |" in markdown
    for text in (shown, markdown):
        told = " ".join(text.split())
        assert "image by image" in told and "2 vanilla runs against each other" in told


def test_teachers_have_a_row(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = write_run(tmp_path / "teacher", student="resnet20", accuracy=0.9)
    accuracy = load_run(teacher).result.accuracy
    settings = {"DISTILLER.PLANT.CLASSES": [3]}
    runs = [
        str(write_run(tmp_path / "vanilla")),
        str(write_run(tmp_path / "kd", method="KD", teacher_checkpoint=teacher / "student_latest", settings=settings)),
    ]
    for words in (runs, ["--pairs", *runs]):
        assert main(["compare", *words, "--markdown", "-"]) == 0
        (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| teacher"))
        assert "before planting class 0003 | 1 |" in row and f"| {100 * accuracy:.1f} % |" in row
        assert main(["compare", *words, "--json", "-"]) == 0
        (record,) = json.loads(capsys.readouterr().out)["teachers"]
        assert record["planted_classes"] == ["class 0003"]
        assert record["test_accuracy"]["mean"] == pytest.approx(accuracy)
    # Whatever a config says of classes that are not there.
    odd = write_run(tmp_path / "odd", method="KD", settings={"DISTILLER.PLANT.CLASSES": [99, "3", None]})
    assert main(["compare", runs[0], str(odd), "--markdown", "-"]) == 0
    (row,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("| teacher"))
    assert "before planting 99, 3, None |  | not known |" in row


def test_labels_seeds_and_standard_output(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    both = f"base={runs['vanilla']},{runs['vanilla-1']}"
    assert main(["compare", both, f"mine={runs['kd']},{runs['tllm']}", "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [(m["method"], m["test_accuracy"]["n"]) for m in content["methods"]] == [("mine", 2)]
    assert content["classes"][0]["std_over_seeds"] is not None


def test_the_vanilla_column_is_of_the_run_that_is_compared_with(
    runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    # The run of another seed is named first.
    words = [runs[name] for name in ("vanilla-1", "vanilla", "kd")]
    assert main(["compare", *words, "--classes", "12", "--markdown", "-"]) == 0
    shown = capsys.readouterr().out
    result = load_run(runs["kd"]).result
    rows = [line.split(" | ") for line in shown.splitlines() if line.startswith("| class 0")]
    assert len(rows) == 12
    for name, vanilla, delta in rows:
        index = int(name.split()[-1])
        added = float(vanilla.rstrip("%")) + float(delta.lstrip("*").split()[0])
        assert added == pytest.approx(100 * result.correct[index] / result.total[index])
    assert "compared with the vanilla run of its seed" in shown


def test_what_is_no_vanilla_run_is_not_called_so(runs: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", runs["kd"], runs["tllm"], "--classes", "1", "--markdown", "-"]) == 0
    shown = capsys.readouterr().out
    assert "vanilla" not in shown and "minus the KD student's" in shown and "one KD run" in shown
    headings = [line.split(" | ")[:2] for line in shown.splitlines() if line.startswith(("| KD", "| class |"))]
    assert headings == [["| KD", "1"], ["| class", "KD"]]
    assert main(["compare", f"mine={runs['kd']}", runs["tllm"], "--markdown", "-"]) == 0
    shown = capsys.readouterr().out
    assert "| mine | 1 |" in shown and "minus the mine student's" in shown
    pairs = [runs["kd"], runs["tllm"], runs["vanilla"], runs["vanilla-1"]]
    assert main(["compare", "--pairs", *pairs[:2], "--markdown", "-"]) == 0
    assert "| method | runs | KD |" in capsys.readouterr().out
    assert main(["compare", "--pairs", *pairs, "--markdown", "-"]) == 0
    assert "| method | runs | baseline |" in capsys.readouterr().out


def test_two_vanilla_students_are_told_apart(
    runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher = str(write_run(tmp_path / "teacher", student="resnet20"))
    for words in ([runs["vanilla"], teacher], ["--pairs", runs["vanilla"], teacher]):
        assert main(["compare", *words, "--json", "-"]) == 0
        content = json.loads(capsys.readouterr().out)
        assert [method["method"] for method in content["methods"]] == ["vanilla, resnet20"]


def test_students_of_several_networks_in_pairs_are_told_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = [(student, method) for student in ("resnet8", "resnet14") for method in ("NONE", "KD")]
    named = [str(write_run(tmp_path / f"{s}-{m}", student=s, method=m)) for s, m in kinds]
    assert main(["compare", "--pairs", *named, "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert [method["method"] for method in content["methods"]] == ["KD, resnet20/resnet8", "KD, resnet20/resnet14"]


@pytest.mark.parametrize(("most", "told"), [("1", "the 1 class"), ("12", "the 12 classes"), ("50", "the 12 classes")])
def test_as_many_classes_as_the_table_has(
    most: str, told: str, runs: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", runs["vanilla"], runs["kd"], "--classes", most]) == 0
    shown = capsys.readouterr().out
    assert f"{told} with the lowest delta acc" in shown
    assert sum(line.startswith("│ class 0") for line in shown.splitlines()) == int(told.split()[1])


def test_checkpoints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for place in range(2):
        save_torch(tmp_path / f"net{place}", {"model": create_model("digits_student", 10, 1).state_dict()})
        paths.append(f"digits_student@{tmp_path / f'net{place}'}")
    assert main(["compare", *paths, "--data", "digits", "--json", "-"]) == 0
    content = json.loads(capsys.readouterr().out)
    # A checkpoint does not say what it is; who names it first says that it is vanilla.
    assert main(["compare", *paths, "--data", "digits", "--markdown", "-"]) == 0
    assert "| vanilla | 1 |" in capsys.readouterr().out
    assert content["num_classes"] == 10 and sum(c["test_images"] for c in content["classes"]) == 600
    assert main(["compare", *paths]) == 2
    assert "Expected `--data` to name the test data for digits_student@" in capsys.readouterr().err


def test_refusals(runs: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", runs["vanilla"], str(tmp_path / "nothing")]) == 1
    assert "nothing to be a run, but it does not exist" in capsys.readouterr().err
    assert main(["compare", runs["vanilla"], runs["vanilla-1"]]) == 2
    assert "a run of another method than vanilla to compare" in capsys.readouterr().err
    assert main(["compare", runs["vanilla"], str(write_run(tmp_path / "other", method="KD", classes=11))]) == 2
    assert "runs on the same classes, but" in capsys.readouterr().err
