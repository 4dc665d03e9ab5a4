"""What a user sees first: help without delay, suggestions, JSON, quiet runs, log lines and progress."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from tests.analysis.planted_runs import write_run
from tests.hosts.digits_runs import BASE, CONFIG
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.cli import main
from tllm_plugin.cli.comparison_table import comparison_table
from tllm_plugin.cli.main import build_parser
from tllm_plugin.cli.search_hosts import HOSTS
from tllm_plugin.cli.training_parsers import HOSTS as HOST_NAMES
from tllm_plugin.core.scores import SCORES
from tllm_plugin.hosts import checkouts
from tllm_plugin.hosts.console import PlainConsole, start_logging
from tllm_plugin.hosts.embedded import progress
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.embedded.progress import EpochReport, RunProgress
from tllm_plugin.search.space import searchable_keys

HEAVY = ("torch", "torchvision", "numpy", "scipy", "sklearn", "yacs", "yaml", "rich", "optuna", "pydantic", "plotly")
COMMANDS = list(build_parser()._subparsers._group_actions[0].choices)  # type: ignore[union-attr, arg-type]


@pytest.mark.parametrize("words", [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS), ["trian"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        f"import sys; from tllm_plugin.cli import main; code = main({words}); "
        f"print(code, [name for name in {HEAVY} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == f"{2 if words == ['trian'] else 0} []"


def test_names_in_light_parsers_are_the_registered_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert set(HOST_NAMES) == set(HOSTS)
    assert main(["show", "--help"]) == 0 and main(["host", "install", "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert all(name in shown for name in (*SCORES, *checkouts.SOURCES))


@pytest.mark.parametrize(
    "words, suggested",
    [
        (["trian"], "train"),
        (["host", "chek", "x"], "check"),
        (["train", "--cfg", str(CONFIG), "--host", "mdistller"], "mdistiller"),
        (["train", "--cfg", str(CONFIG), "--overwrit-it"], "--overwrite"),
        (["train", "--cfg", str(CONFIG), "SOLVR.EPOCHS", "3"], "SOLVER"),
        (["train", "--cfg", str(CONFIG), "SOLVER.EPOCH", "3"], "EPOCHS"),
        (["train", "--cfg", str(CONFIG), "epochs", "3"], "SOLVER.EPOCHS"),
        (["train", "--cfg", str(CONFIG), "TLLM.ETA", "0.1"], "TLLM.DETECTOR.ETA"),
        (["train", "--cfg", str(CONFIG), "TLLM.DETECTOR.TYPE", "refrence"], "reference"),
        (["train", "--cfg", str(CONFIG), "DISTILLER.STUDENT", "resnt20"], "resnet20"),
        (["search", "--cfg", str(CONFIG), "--space", "ETAS=0.1"], "ETA"),
    ],
)
def test_a_misspelled_name_is_answered_with_a_suggestion(
    words: list[str], suggested: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert re.search(rf"; did you mean {re.escape(suggested)}\?\n", capsys.readouterr().err)


def test_a_name_like_no_other_gets_no_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zzz"]) == 2 and main(["train", "--cfg", str(CONFIG), "ZZZ", "3"]) == 2
    assert "did you mean" not in capsys.readouterr().err


def test_searchable_keys_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "keys", "--searchable"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert set(listed) == set(searchable_keys(default_config())) and "TLLM.DETECTOR.ETA" in listed
    assert main(["config", "keys", "--searchable", "--grep", "SOLVER.EPOCHS"]) == 1


def test_show_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", method="KD", detector="reference", flagged=(2,), classes=4)
    assert main(["show", str(run), "--json", "-", "--score", "true_prob"]) == 0
    content = json.loads(capsys.readouterr().out)
    curves = load_run(run).curves
    assert curves is not None
    assert [item["index"] for item in content["flags"]["classes"] if item["flagged"]] == [2]
    assert content["policy"] is None and content["score"] == "true_prob" and content["epochs"] == curves.epochs
    assert content["curves"][3] == pytest.approx(curves.class_curves("true_prob")[:, 3].tolist())
    assert main(["show", str(run), "--json", str(tmp_path / "show.json")]) == 0
    assert "1 of 4 classes flagged" in capsys.readouterr().out
    assert json.loads((tmp_path / "show.json").read_text())["flags"] == content["flags"]


def test_an_unknown_score_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(write_run(tmp_path / "run")), "--score", "acuracy"]) == 2
    assert "did you mean accuracy?" in capsys.readouterr().err


def test_host_status_as_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TLLM_CACHE_DIR", str(tmp_path))
    assert main(["host", "status", "--json", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == {"checkouts": []}


def test_search_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["search", "--cfg", str(CONFIG), "--eta", "0.2", "--json", "-", "--no-baseline", *BASE]
    assert main([*words, "SOLVER.EPOCHS", "1", "LOG.PREFIX", str(tmp_path), "--quiet"]) == 0
    output = capsys.readouterr()
    content = json.loads(output.out)
    assert [trial["values"] for trial in content["trials"]] == [{"TLLM.DETECTOR.ETA": 0.2}] == [content["chosen"]]
    assert Path(content["evidence"]).exists() and content["next"].startswith("tllm train --cfg")
    assert output.err == ""


@pytest.mark.parametrize("quiet", [False, True])
def test_log_lines_elsewhere_than_on_a_terminal(quiet: bool, capsys: pytest.CaptureFixture[str]) -> None:
    start_logging(quiet=quiet)
    logging.getLogger("tllm_plugin.x").info("long " * 60)
    logging.getLogger("tllm_plugin.x").warning("two\nlines \x1b[31m")
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \S", line) for line in lines)
    assert len(lines) == (1 if quiet else 2) and lines[-1].endswith(" two lines \\x1b[31m")


def test_progress_fits_into_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(
        progress, "PlainConsole", lambda **_: PlainConsole(file=file, width=80, force_terminal=True, color_system=None)
    )
    logging.getLogger().setLevel(logging.INFO)
    with RunProgress("a long name of a run", 240, 10, 119) as shown:
        for _ in range(10):
            shown.step()
        shown.epoch(EpochReport(120, 10.1234, 1.0, 1.0, 0.1))
    lines = [line.rstrip() for line in re.split(r"[\r\n]", re.sub(r"\x1b\[[0-9?]*[A-Za-z]", "", file.getvalue()))]
    assert max(map(len, lines)) <= 80
    assert re.search(
        r"epoch 120/240 loss 10\.123 train 100\.0% test 100\.0% \d:\d\d:\d\d left$", lines[-1] or lines[-2]
    )


def test_quiet_hides_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    file = io.StringIO()
    monkeypatch.setattr(progress, "PlainConsole", lambda **_: PlainConsole(file=file, width=80, force_terminal=True))
    logging.getLogger().setLevel(logging.WARNING)
    with RunProgress("run", 2, 1, 0) as shown:
        shown.step()
        shown.epoch(EpochReport(1, 1.0, 0.5, None, 0.1))
    assert file.getvalue() == ""


def rows_of(run: Path) -> list[list[str]]:
    console = Console(file=io.StringIO(), width=200)
    console.print(comparison_table(load_run(run)))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    return [
        [cell.strip() for cell in line.split("\u2502")[1:-1]]
        for line in shown.splitlines()
        if line.startswith("\u2502")
    ]


def test_the_table_after_a_training_finds_the_runs_to_compare_with(tmp_path: Path) -> None:
    teacher = write_run(tmp_path / "a-teacher", student="resnet20", accuracy=0.9)
    checkpoint = teacher / "student_latest"
    checkpoint.write_text("")
    shape = {"teacher_checkpoint": checkpoint, "method": "KD"}
    vanilla = write_run(tmp_path / "vanilla")
    write_run(tmp_path / "vanilla-of-another-seed", seed=1)
    kd = write_run(tmp_path / "kd", hurt=(1, 2), **shape)
    write_run(tmp_path / "kd-of-another-seed", seed=1, **shape)
    run = write_run(tmp_path / "tllm", detector="reference", flagged=(1, 2), reference=vanilla, **shape)
    found = {name: load_run(path).result for name, path in [("teacher", teacher), ("vanilla", vanilla), ("kd", kd)]}
    below = int((found["kd"].class_accuracy < found["vanilla"].class_accuracy - 1e-9).sum())
    one, two, three, four = rows_of(run)
    assert one[:3] == ["teacher resnet20", f"{found['teacher'].accuracy:.2%}", ""]
    assert two[:3] == ["vanilla student", f"{found['vanilla'].accuracy:.2%}", ""]
    assert three == ["KD, no detector", f"{found['kd'].accuracy:.2%}", f"{below} of 12", "0 of 12"]
    assert four[0] == "this run: TLLM (KD)" and four[3] == "2 of 12: class 0001, class 0002"
    # Without a reference in the config, the vanilla run of the same seed is compared with.
    assert rows_of(kd)[1] == two and rows_of(kd)[2][0] == "this run: KD"
