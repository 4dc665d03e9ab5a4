"""`tllm tables`: every printed number of the paper is there, and runs land where they belong."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from tests.analysis.planted_runs import write_run
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.published import TABLES, Cell
from tllm_plugin.cli import main
from tllm_plugin.runs.run_folder import RunFolder

# Typed off the appendix once more, row by row, independently of the code.
PRINTED = {
    5: [
        [52, 16, -36, 48, 14, -34, 54, 15, -39],
        [39, 14, -25, 46, 17, -29, 45, 19, -26],
        [37, 17, -20, 39, 13, -26, 43, 17, -26],
    ],
    6: [[73.43, 75.40, 75.72, 77.31], [75.21, 74.97, 75.38, 75.21], [76.02, 76.54, 77.11, 77.35]],
    8: [
        [73.3, 76.2],
        [69.8, 68.9],
        [70.7, 72.1, 1.4, 70.5, 72.0, 1.5],
        [70.7, 71.5, 0.8, 69.6, 70.6, 1.0],
        [71.1, 72.0, 0.9, 71.5, 72.8, 1.3],
    ],
    9: [[72.50, 73.08, 73.86, 75.53], [64.60, 67.28, 65.11, 69.54], [70.50, 74.07, 70.78, 76.67]],
    10: [[82.17, 82.17], [76.89, 79.20], [79.96, 81.15, 1.19, 81.18, 82.26, 1.08]],
    11: [[64.6, 66.4, 69.5], [69.8, 70.7, 72.1]],
}


def tables_of(folder: Path, capsys: pytest.CaptureFixture[str], *options: str) -> dict[int, dict[str, list[Any]]]:
    assert main(["tables", str(folder), "--json", "-", *options]) == 0
    content = json.loads(capsys.readouterr().out)
    return {table["table"]: {row["label"]: row["cells"] for row in table["rows"]} for table in content["tables"]}


def test_printed_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tables_of(tmp_path, capsys)
    assert list(found) == list(PRINTED)
    for number, rows in PRINTED.items():
        shown = [[c["published"] for c in cells if c["published"] is not None] for cells in found[number].values()]
        assert shown == [pytest.approx(row) for row in rows]
    assert all(cell["ours"] is None for rows in found.values() for cells in rows.values() for cell in cells)
    cells = [cell for table in TABLES for _, row in table.rows for cell in row if isinstance(cell, Cell)]
    assert {cell.data_set for cell in cells} == {"cifar100", "imagenet", "cub200"}


def test_runs_land_where_they_belong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shape = {"classes": 10, "per_class": 20, "data_set": "cifar100", "student": "MobileNetV2", "teacher": "ResNet50"}
    eskd = {**shape, "method": "KD", "detector": "after"}
    paths = {
        "vanilla": write_run(tmp_path / "vanilla", **shape),
        "kd": write_run(tmp_path / "deep" / "er" / "kd", method="KD", hurt=(1, 2), **shape),
        "kd-1": write_run(tmp_path / "kd-1", method="KD", hurt=(1, 2), seed=1, **shape),
        "tllm": write_run(tmp_path / "tllm", method="KD", detector="reference", **shape),
        "bad": write_run(tmp_path / "bad", **eskd, accuracy=0.3, settings={"TLLM.DETECTOR.AFTER_FRACTION": 0.7}),
        "good": write_run(tmp_path / "good", **eskd, accuracy=0.8, settings={"TLLM.DETECTOR.AFTER_FRACTION": 0.8}),
        "ls": write_run(tmp_path / "ls", detector="all", **shape),
        "elsewhere": write_run(tmp_path / "elsewhere", **{**shape, "data_set": "digits"}, method="KD", accuracy=0.1),
    }
    runs = {name: load_run(path) for name, path in paths.items()}
    found = tables_of(tmp_path, capsys)
    student, kd, ls, tllm = found[9]["ResNet50/MobileNetV2"]
    two = [100 * runs[name].result.accuracy for name in ("kd", "kd-1")]
    assert (kd["ours"]["mean"], kd["ours"]["n"]) == (pytest.approx(np.mean(two)), 2)
    assert kd["ours"]["std"] == pytest.approx(np.std(two, ddof=1)) and sorted(kd["runs"]) == ["kd", "kd-1"]
    for cell, name in ((student, "vanilla"), (ls, "ls"), (tllm, "tllm")):
        assert cell["ours"] == {"mean": pytest.approx(100 * runs[name].result.accuracy), "std": None, "n": 1}
    eskd_cell = found[11]["CIFAR-100, ResNet50/MobileNetV2"][1]
    assert eskd_cell["runs"] == ["good"] and eskd_cell["ours"]["mean"] > 60
    plain, with_tllm, difference = found[5]["KD"][3:6]
    hurt = [
        100 * np.mean(runs[name].result.class_accuracy < runs["vanilla"].result.class_accuracy - 1e-9)
        for name in ("kd", "kd-1", "tllm")
    ]
    assert plain["ours"]["mean"] == pytest.approx(np.mean(hurt[:2])) and with_tllm["ours"]["mean"] == pytest.approx(
        hurt[2]
    )
    assert difference["ours"]["mean"] == pytest.approx(hurt[2] - np.mean(hurt[:2])) and difference["ours"]["n"] == 1
    filled = [c for rows in found.values() for cells in rows.values() for c in cells if c["ours"] is not None]
    # Table 5: three; Table 9: four and the student of its other pairs: none; Table 11: three.
    assert len(filled) == 10


def test_markdown_and_latex(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "runs" / "v", data_set="imagefolder", student="resnet18", classes=5)
    assert main(["tables", str(tmp_path / "runs")]) == 0
    plain = capsys.readouterr().out
    assert plain.count("### Table") == plain.count("(the paper's numbers only)") == 6
    assert plain.startswith("All numbers below are the paper's; no cell is filled by a run of yours.\n")
    assert plain.endswith(f"\n0 cells filled from 1 finished runs below {tmp_path / 'runs'}\n")
    words = ["tables", str(tmp_path / "runs"), "--imagefolder-is", "imagenet", "--markdown", "-"]
    assert main(words) == 0
    mine = capsys.readouterr().out
    assert mine.startswith("Plain numbers are the paper's. **Bold numbers are yours** (2 cells): mean +- ")
    assert mine.count("cells are yours)") + mine.count("(the paper's numbers only)") == 6
    assert mine.count("**") == 2 + 2 * 2
    tex = tmp_path / "tables.tex"
    assert main(["tables", str(tmp_path / "runs"), "--imagefolder-is", "imagenet", "--latex", str(tex)]) == 0
    assert "2 cells filled" in capsys.readouterr().out
    text = tex.read_text()
    own = 100 * load_run(tmp_path / "runs" / "v").result.accuracy
    assert f"69.8 / \\textbf{{{own:.2f} (1)}}" in text and not math.isnan(own)
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    shapes = re.findall(r"\\begin\{tabular\}\{(l(r+))\}", text)
    assert text.count("(plain: the paper; \\textbf{bold}: own runs).}") == mine.count("cells are yours)")
    assert len(shapes) == 6 and {len(columns) for _, columns in shapes} == {9, 4, 6, 3}
    assert all(line.count("&") in (9, 4, 6, 3) for line in rows)
    assert not re.search(r"(?<!\\)%", text)


def test_numbers_have_the_decimals_that_the_paper_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decimals = {5: 0, 6: 2, 8: 1, 9: 2, 10: 2, 11: 1}
    assert main(["tables", str(tmp_path)]) == 0
    _, *blocks = capsys.readouterr().out.split("### Table ")
    shown = {}
    for block in blocks:
        # Below the heading and the line under it; the first cell is the row's name.
        rows = [line.split("|")[2:-1] for line in block.splitlines() if line.startswith("|")][2:]
        shown[int(block.partition(":")[0])] = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    printed = {number: [[f"{x:.{decimals[number]}f}" for x in row] for row in rows] for number, rows in PRINTED.items()}
    assert shown == printed


def test_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["tables", str(tmp_path / "nothing")]) == 2
    assert "to be a folder of runs" in capsys.readouterr().err


def test_what_cannot_be_read_is_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "broken")
    (run / "tllm" / "metrics.json").write_text("{")
    assert main(["tables", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "0 finished runs" in shown.out and "left out" in shown.err


def test_runs_of_a_search_are_no_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_run(tmp_path / "kd", method="KD")
    for name in ("under way", "under way and untested"):
        run = RunFolder.inside(write_run(tmp_path / name, method="KD", tested=name == "under way"))
        run.write_metrics(replace(run.read_metrics(), finished=False))
    for number in range(3):
        write_run(tmp_path / "search" / f"trial-{number}", method="KD", detector="reference", tested=False)
    tested = RunFolder.inside(write_run(tmp_path / "search" / "tested", method="KD", detector="reference"))
    config = yaml.safe_load(tested.read_config())
    config["TLLM"].setdefault("HOLDOUT", {})["SEARCH_FRACTION"] = 0.1
    tested.write_config(yaml.safe_dump(config))
    assert main(["tables", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    assert "1 finished runs" in shown.out and shown.err.count("left out") == 1
    assert "left out: 4 finished runs without test results or with a search hold-out" in " ".join(shown.err.split())
