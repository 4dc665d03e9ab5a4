"""`tllm headroom` on planted runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.analysis.planted_runs import write_run
from tllm_plugin.cli import main


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [
        *(str(write_run(tmp_path / f"vanilla-{seed}", seed=seed)) for seed in range(3)),
        *(str(write_run(tmp_path / f"kd-{seed}", method="KD", hurt=(3, 8), seed=seed)) for seed in range(3)),
    ]


def test_table_and_json(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    path = tmp_path / "headroom.json"
    assert main(["headroom", *runs, "--json", str(path)]) == 0
    shown = capsys.readouterr().out
    (row,) = [line for line in shown.splitlines() if line.startswith("│")]
    found = json.loads(path.read_text())["KD"]
    assert "│ KD" in row and "3 / 3" in row
    # Counts of classes stand beside how many there are, so that none is taken for a number of runs.
    below = [f"{found['below']:g} of 12", f"{found['below_by_shift']:.0f} of 12"]
    assert [cell.strip() for cell in row.split("│")][-3:-1] == below
    assert f"{100 * found['ceiling']['value']:.1f} ({100 * found['ceiling']['low']:.1f} to" in row
    # Two classes of twelve are hurt in every seed, the others in none.
    assert found["source"] == "seeds" and found["reliability"] > 0.8 and found["spread"]["low"] > 0
    assert 0 < found["ceiling"]["low"] < found["ceiling"]["value"] < found["ceiling"]["high"]
    assert main(["headroom", *runs, "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads(path.read_text())


def test_one_pair_is_told_what_it_cannot_show(runs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["headroom", runs[0], runs[3]]) == 0
    assert "a single pair of runs shows the sampling noise" in " ".join(capsys.readouterr().out.split())


def test_without_a_vanilla_run_there_is_nothing_to_compare_with(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["headroom", *runs[3:]]) == 2
    assert "vanilla and distilled runs of one student" in capsys.readouterr().err
