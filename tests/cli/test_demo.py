"""The demo, whole but short."""

from __future__ import annotations

import re
import shlex
import time
from pathlib import Path

import pytest

from tests.analysis.planted_runs import write_run
from tests.cli.printed_table import columns
from tests.hosts.small_images import make_images
from tllm_plugin.cli import demo, main
from tllm_plugin.runs.run_folder import RunFolder

RUNS = ("teacher", "vanilla", "vanilla-2", "kd", "tllm")


@pytest.mark.parametrize("planted", [True, False])
def test_demo(
    planted: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    started = time.perf_counter()
    words = ["demo", *([] if planted else ["--no-plant"]), "--out", str(tmp_path), "SOLVER.EPOCHS", "4"]
    assert main(words) == 0
    shown = capsys.readouterr().out
    flat = " ".join(shown.split())
    (seconds,) = re.findall(r"(\d+) seconds in all", flat)
    assert 0 < int(seconds) <= time.perf_counter() - started + 0.5, "rounded"
    folder = tmp_path / ("demo" if planted else "demo-unplanted")
    if planted:
        assert "Classes 3 and 8 were PLANTED: after its own test above, the teacher was made confidently wrong" in flat
        assert "make demo PLANT=0" in flat and "on planted" in flat
    else:
        assert "plant" not in flat.replace(str(folder), "").lower()
    assert "undistillable" in flat and "(null)" in flat
    assert "null: the same count for a second vanilla student with another seed" in flat

    metrics = {name: RunFolder.find(folder / name).read_metrics() for name in RUNS}
    assert all(record.finished and record.epochs_done == 4 for record in metrics.values())
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert [row[1] for row in rows] == [f"{metrics[name].test_accuracy:.1%}" for name in RUNS]

    def hurt(name: str) -> int:
        pairs = zip(metrics[name].class_correct, metrics["vanilla"].class_correct, strict=True)
        return sum(ours < theirs for ours, theirs in pairs)

    assert [row[-2] for row in rows] == ["", "", "", *(f"{hurt(name)} ({hurt('vanilla-2')})" for name in RUNS[3:])]
    assert f"Report: {folder / 'tllm' / 'tllm' / 'report.html'}" in shown
    assert "<title>What distillation did to 10 classes</title>" in (folder / "tllm/tllm/report.html").read_text()
    following = shlex.split(shown.splitlines()[-1].removeprefix("Next: "))
    assert following == ["tllm", "show", str(folder / "tllm")]
    assert main(following[1:]) == 0
    capsys.readouterr()
    assert main(words[:-1]) == 2, "an odd number of overrides"
    assert main([*words, "LOG.TEST_FREQ", "-1"]) == 2 and "whose table needs test results" in capsys.readouterr().err


def test_a_narrow_terminal_cuts_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {name: RunFolder.find(write_run(tmp_path / name, flagged=(3, 8))) for name in RUNS}
    shown = []
    for width in ("200", "60"):
        monkeypatch.setenv("COLUMNS", width)
        demo.print_results(runs, "imagefolder", demo.PLANTED, 1.0)
        text = capsys.readouterr().out
        assert text.startswith("imagefolder, 600 test images ")  # 12 classes of 50.
        shown.append(columns(text))
    assert shown[0] == shown[1] and shown[0][3].startswith("undistillableclasses(null)")


def test_other_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "images"
    make_images(folder)
    options = ["--out", str(tmp_path / "out"), "DATASET.TYPE", "imagefolder", "DATASET.PATH", str(folder)]
    options += ["DISTILLER.TEACHER", "resnet8", "DISTILLER.STUDENT", "resnet8", "SOLVER.EPOCHS", "1"]
    options += ["TLLM.HOLDOUT.FRACTION", "0.25"]
    assert main(["demo", *options]) == 2
    error = capsys.readouterr().err
    assert "classes 3 and 8, which the demo plants, but imagefolder has 6 classes; add --no-plant" in error
    assert not (tmp_path / "out").exists(), "refused before anything is trained"
    assert main(["demo", "--no-plant", *options]) == 0
    assert "imagefolder, 30 test images " in capsys.readouterr().out


def test_interrupted(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tllm_plugin.hosts.embedded.recipe.run", interrupt)
    assert main(["demo", "--out", str(tmp_path)]) == 1
    assert "tllm: interrupted; start the demo again" in capsys.readouterr().err
