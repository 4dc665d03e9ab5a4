"""The command line: exit codes, messages a user can act on, and commands that work when they are pasted."""

from __future__ import annotations

import io
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.analysis.planted_runs import write_run
from tests.cli.printed_table import columns
from tests.hosts.digits_runs import BASE, CONFIG
from tllm_plugin.cli import main, show
from tllm_plugin.cli.main import build_parser
from tllm_plugin.core.curves import Curves
from tllm_plugin.hosts.embedded.defaults import own_options
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.hosts.options import table
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder

COMMANDS = ("train", "test", "search", "demo", "validate", "config", "show", "compare", "report", "tables")
VANILLA = ("DISTILLER.TYPE", "NONE", "SOLVER.EPOCHS", "1")


@pytest.fixture(autouse=True)
def _wide_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def train_words(prefix: Path, *options: str) -> list[str]:
    return ["train", "--cfg", str(CONFIG), *BASE, "LOG.PREFIX", str(prefix), *options]


@pytest.fixture(scope="module")
def flagged_run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run on which classes 3 and 8 are flagged from the start."""
    prefix = tmp_path_factory.mktemp("flagged")
    fixed = ("TLLM.DETECTOR.TYPE", "fixed", "TLLM.DETECTOR.CLASSES", "['3', '8']", "EXPERIMENT.NAME", "a run")
    assert main(train_words(prefix, *VANILLA, *fixed)) == 0
    return RunFolder.find(prefix / "digits" / "a run")


def assert_no_traceback(text: str) -> None:
    assert "Traceback" not in text and 'File "' not in text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_has_an_example_that_parses(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert f"Example: tllm {command}" in shown
    example = shlex.split(shown.split("Example: tllm ")[1])
    assert build_parser().parse_args(example).command == command


@pytest.mark.parametrize("command", COMMANDS)
def test_an_unknown_option_is_answered_with_the_usage_of_its_command(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    words = {
        "host": ["host", "install", "mdistiller"],
        "config": ["config", "keys"],
        "compare": ["compare", "a", "b"],
        "tables": ["tables", "a"],
    }
    assert main([*words.get(command, [command, "a"]), "--nonsense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"usage: tllm {command} ") and "error: " in error and "--nonsense" in error


def test_the_help_of_search_fits_into_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["search", "--help"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_help_and_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert all(command in shown for command in COMMANDS) and "Example: tllm" in shown
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("tllm-plugin ")


def test_keys_of_configs_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "keys"]) == 0
    listed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in listed] == [*own_options(), *table()]
    assert main(["config", "keys", "--grep", "FALSE discovery"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.split()[:2] == ["TLLM.DETECTOR.FDR", "0.05"] and line.endswith("[--tllm_fdr]")
    assert main(["config", "keys", "--grep", "no such thing"]) == 1
    assert "Expected `--grep` to occur in a key" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["nonsense"], ["train"], ["show"], ["validate"]])
def test_bad_usage(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    assert "usage: tllm" in capsys.readouterr().err


def test_overrides_may_stand_on_both_sides_of_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = train_words(tmp_path, *VANILLA, "EXPERIMENT.NAME", "a")
    assert main([*words, "--overwrite", "SOLVER.BATCH_SIZE", "32", "LOG.TEST_FREQ", "-1"]) == 0
    config = RunFolder.find(tmp_path / "digits" / "a").config_yaml.read_text()
    assert "BATCH_SIZE: 32" in config and "TEST_FREQ: -1" in config
    capsys.readouterr()
    assert main([*words, "--overwrite", "SOLVER.BATCH_SIZE", "32", "--no-such", "1"]) == 2
    assert "unrecognized arguments: SOLVER.BATCH_SIZE 32 --no-such 1" in capsys.readouterr().err


def test_ctrl_c_while_modules_are_imported(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["tllm_plugin.cli.main"], "import_module", interrupted)
    assert main(["show", "x"]) == 1
    assert capsys.readouterr().err == "tllm: interrupted\n"


def test_bad_config_is_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train_words(tmp_path, "TLLM.DETECTOR.ETA", "7", "SOLVER.LRR", "1")) == 2
    error = capsys.readouterr().err
    assert error.startswith("tllm: Expected `SOLVER key` to be one of ")
    assert "Expected `TLLM.DETECTOR.ETA` to be in (0, 1), but got 7.0" in error
    assert_no_traceback(error)
    assert list(tmp_path.iterdir()) == []


def test_missing_config_is_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--cfg", "configs/tllm/embedded/digit.yaml"]) == 2
    error = capsys.readouterr().err
    assert "there is no such file" in error and "tllm/embedded/digits.yaml" in error
    assert_no_traceback(error)


def test_failure_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    teacher = tmp_path / "teacher"
    teacher.write_text("not a checkpoint")
    words = train_words(tmp_path, "DISTILLER.TEACHER_CHECKPOINT", str(teacher), "TLLM.DETECTOR.TYPE", "none")
    assert main(words) == 1
    error = capsys.readouterr().err
    assert f"tllm: Expected {teacher} to be a network's checkpoint, but" in error
    assert_no_traceback(error)


def test_folder_that_cannot_be_made_is_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(train_words(tmp_path / "file", *VANILLA, "TLLM.DETECTOR.TYPE", "none")) == 1
    error = capsys.readouterr().err
    assert "Cannot make the folder" in error
    assert_no_traceback(error)


def test_train_prints_folder_and_next_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    prefix = tmp_path / "with space"
    words = train_words(prefix, *VANILLA, "TLLM.DETECTOR.TYPE", "none")
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    folder = prefix / "digits" / "vanilla-digits_student-seed0"
    assert lines[0].startswith("test accuracy ") and lines[0].endswith("% after 1 epochs")
    assert lines[1] == f"run folder    {folder}"
    following = shlex.split(lines[2])
    assert following == ["next", "tllm", "show", str(folder)]
    assert main(following[2:]) == 0
    assert "0 of 10 classes flagged by `none`" in capsys.readouterr().out
    assert main(words) == 2
    assert "add --resume to continue it, --overwrite to start anew" in capsys.readouterr().err
    assert main([*words[:3], "--overwrite", *words[3:]]) == 0


def test_train_links_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(train_words(tmp_path, "SOLVER.EPOCHS", "1", "EXPERIMENT.NAME", "a run")) == 0
    page = tmp_path / "digits" / "a run" / "tllm" / "report.html"
    lines = capsys.readouterr().out.splitlines()
    assert f"report        {page}" in lines
    (teacher,) = (tmp_path / "digits").glob("teacher-*")
    accuracy = RunFolder.inside(teacher).read_metrics().test_accuracy
    rows = [[cell.strip() for cell in line.split("\u2502")[1:-1]] for line in lines if line.startswith("\u2502")]
    (reference,) = (tmp_path / "digits").glob("vanilla-*")
    results = [RunFolder.find(path).read_metrics().test_accuracy for path in (reference, page.parent)]
    assert [row[:2] for row in rows] == [
        ["teacher digits_teacher", f"{accuracy:.2%}"],
        ["vanilla student", f"{results[0]:.2%}"],
        ["KD, no detector", "not found"],
        ["this run: TLLM (KD)", f"{results[1]:.2%}"],
    ]
    assert '"label":"teacher digits_teacher"' in page.read_text()
    # The reference that was trained first is in it.
    assert '"label":"vanilla"' in page.read_text() and '"label":"TLLM (KD)"' in page.read_text()

    words = train_words(tmp_path, "SOLVER.EPOCHS", "1", "EXPERIMENT.NAME", "a run", "LOG.TEST_FREQ", "-1")
    assert main([*words[:3], "--overwrite", *words[3:]]) == 0
    shown = capsys.readouterr()
    assert shown.out.splitlines()[0] == "test accuracy not measured, after 1 epochs"
    assert "report  " not in shown.out and "no report" not in shown.err and not page.exists()


def test_ctrl_c_says_how_to_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original, interrupted_in = BaseTrainer.train_epoch, [0]

    def train_epoch(self: BaseTrainer, epoch: int) -> None:
        if epoch == interrupted_in[0]:
            raise KeyboardInterrupt
        original(self, epoch)

    prefix = tmp_path / "with space"
    words = train_words(prefix, *VANILLA, "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "2")
    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "train_epoch", train_epoch)
        for epoch, resumes in ((1, False), (2, True)):
            interrupted_in[0] = epoch
            assert main(words) == 1
            error = capsys.readouterr().err
            assert_no_traceback(error)
            command = error.split("tllm: interrupted; continue with: ")[1].strip()
            continued = shlex.split(command)
            assert continued[0] == "tllm" and ("--resume" in continued) is resumes
            words = continued[1:]
    assert main(words) == 0
    assert "after 2 epochs" in capsys.readouterr().out


def test_repdistiller_has_arguments_of_its_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []

    def launch(root: Any, arguments: Any, **how: Any) -> None:
        calls.append((arguments, how))
        raise KeyboardInterrupt

    monkeypatch.setattr("tllm_plugin.cli.train.locate", lambda name: name)
    monkeypatch.setattr("tllm_plugin.cli.train.repdistiller.launch", launch)
    words = ["train", "--host", "repdistiller", "--", "--tllm", "--path_t", "a b", "-a", "0.9"]
    assert main(words) == 1
    command = capsys.readouterr().err.split("tllm: interrupted; continue with: ")[1].strip()
    assert main(shlex.split(command)[1:]) == 1
    own = ["--tllm", "--path_t", "a b", "-a", "0.9"]
    assert calls == [(own, {"resume": again, "script": "train_student.py"}) for again in (False, True)]
    assert main(["train", "--host", "repdistiller", "--cfg", "x.yaml"]) == 2
    assert "Expected neither `--cfg` nor `--overwrite` with repdistiller" in capsys.readouterr().err


def test_ctrl_c_elsewhere(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(path: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "find", interrupt)
    assert main(["show", "x"]) == 1
    assert capsys.readouterr().err == "tllm: interrupted\n"


def test_validate_reports_every_problem_of_every_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.yaml").write_text("TLLM: {ETTA: 0.1}\nSOLVER: {LR: fast, EPOCHS: 0}\n")
    (tmp_path / "two.yaml").write_text("DATASET: {TYPE: dogs}\n")
    files = [str(tmp_path / "one.yaml"), str(CONFIG), str(tmp_path / "two.yaml"), str(tmp_path / "none.yaml")]
    assert main(["validate", *files]) == 2
    output = capsys.readouterr()
    assert output.out == f"{CONFIG}: fine\n"
    lines = output.err.splitlines()
    assert lines[0] == "tllm: 5 problems, read as configs of the embedded host" and len(lines) == 6
    for line, (file, key) in zip(
        lines[1:],
        ((0, "`TLLM key`"), (0, "`SOLVER.LR`"), (0, "`SOLVER.EPOCHS`"), (2, "`DATASET.TYPE`"), (3, "no such file")),
        strict=True,
    ):
        assert line.startswith(f"{files[file]}: Expected ") and key in line
    assert_no_traceback(output.err)


def test_validate_counts_one_problem(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "nothing.yaml"]) == 2
    assert capsys.readouterr().err.startswith("tllm: 1 problem, ")


def test_validate_says_whose_configs_it_reads(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", "tllm/res34_res18.yaml"]) == 2, "a config of mdistiller"
    assert "read as configs of the embedded host" in capsys.readouterr().err
    assert main(["validate", "--help"]) == 0
    assert "Configs of the other hosts" in " ".join(capsys.readouterr().out.split())


def test_validate_takes_the_packaged_configs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["validate", str(CONFIG), "tllm/embedded/digits.yaml"]) == 0
    assert capsys.readouterr().out == f"{CONFIG}: fine\ntllm/embedded/digits.yaml: fine\n"


@pytest.mark.parametrize("score", ["accuracy", "reciprocal_rank", "true_prob"])
def test_show_prints_flagged_classes_first(
    score: str, flagged_run: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["show", str(flagged_run.log_folder), "--score", score]) == 0
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if line.startswith("│")]
    assert [row[0] for row in rows] == ["3", "8", "0", "1", "2", "4", "5", "6", "7", "9"]
    assert [row[1] for row in rows] == ["0", "0", *[""] * 8]
    for row in rows:
        right, count = map(int, row[5].split("/"))
        assert count == 18
        if score == "accuracy" and not row[1]:  # The counts are of the epoch of the flag, here before training.
            assert row[6] == f"{right / count:.2f}"
    assert f"hold-out {score} per class" in shown and "2 of 10 classes flagged by `fixed`" in shown


@pytest.mark.parametrize(("width", "epochs"), [(60, "1 50"), (80, "1 25 50"), (100, "1 11 21 30 40 50")])
def test_show_cuts_nothing_off(width: int, epochs: str, flagged_run: RunFolder) -> None:
    recorded = Curves.from_state(to_state(flagged_run.read_curves()))
    curves = Curves(recorded.labels, recorded.num_classes, recorded.sample_ids)
    for epoch in range(1, 51):
        curves.append(epoch, recorded.samples_at(recorded.epochs[-1]))
    shown = io.StringIO()
    # Wider than asked for where not even two epochs fit.
    Console(file=shown, width=max(width, 74)).print(show.table(flagged_run.read_flags(), curves, "accuracy", width))
    lines = [line for line in shown.getvalue().splitlines() if line]
    assert "…" not in shown.getvalue() and lines[1][-1] == "┓"
    heading = next(line for line in lines if "class " in line and "e-value" in line)
    assert heading.replace("┃", " ").split()[-len(epochs.split()) :] == epochs.split()


@pytest.mark.parametrize("width", [60, 80])
def test_show_cuts_no_class_name(
    width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ["001.Black_footed_Albatross", "n01641577", "n01698640"]
    run = write_run(tmp_path / "run", classes=3, names=names)
    assert main(["show", str(run)]) == 0
    whole = columns(capsys.readouterr().out)
    monkeypatch.setenv("COLUMNS", str(width))
    assert main(["show", str(run)]) == 0
    shown = capsys.readouterr().out
    assert all(len(line) <= width for line in shown.splitlines())
    narrow = columns(shown)
    assert narrow[0] == "".join(["class", *names])
    # So many epochs as there is room for, the first and the last among them.
    assert narrow[1:7] == whole[1:7] and narrow[-1] == whole[-1]


def test_show_takes_brackets_in_class_names(flagged_run: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    content = flagged_run.flags_json.read_text()
    flags = flagged_run.read_flags()
    classes = tuple(replace(item, name="[/b]") if item.name == "3" else item for item in flags.classes)
    try:
        flagged_run.write_flags(replace(flags, classes=classes))
        assert main(["show", str(flagged_run.path)]) == 0
    finally:
        flagged_run.flags_json.write_text(content)
    assert "[/b]" in capsys.readouterr().out


def test_what_a_terminal_cannot_write_is_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", classes=2, names=["caf\u00e9", "\u4e2d"])
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict")
    monkeypatch.setattr(sys, "stdout", stream)
    assert main(["show", str(run)]) == 0
    shown = stream.buffer.getvalue().decode("ascii")  # type: ignore[attr-defined]
    assert "caf\\xe9" in shown and "\\u4e2d" in shown


def test_show_of_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["show", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "to be a run, but it holds none of" in error
    assert_no_traceback(error)


def test_show_of_damaged_flags(flagged_run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    copy = RunFolder.inside(tmp_path).create()
    copy.curves_npz.write_bytes(flagged_run.curves_npz.read_bytes())
    copy.flags_json.write_bytes(flagged_run.flags_json.read_bytes()[:-50])
    assert main(["show", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    assert "to be a TLLM flags file, but it is truncated" in error
    assert_no_traceback(error)


def test_host_check_of_what_is_no_checkout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["host", "check", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert f"tllm: Expected {tmp_path} to be a checkout of mdistiller, of RepDistiller or of a descendant" in error
