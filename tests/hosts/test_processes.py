"""Two processes train what one process trains, and end together."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hosts.digits_runs import BASE, CONFIG, load_latest, make_config
from tests.hosts.together import (
    JOB,
    METHODS,
    ROOT,
    UNTAUGHT,
    doubles,
    interrupted,
    norms,
    report,
    single_precision,
    start,
    steps,
)
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.runtime import choose_device
from tllm_plugin.runs.run_folder import RunFolder

pytestmark = [
    pytest.mark.skipif(not torch.distributed.is_available(), reason="PyTorch without torch.distributed"),
    pytest.mark.xdist_group("processes"),  # The jobs are trained once.
]
LONGEST_SECONDS = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One job alone, the same with two processes, and runs that were begun by the one and ended by the other."""
    path = tmp_path_factory.mktemp("processes")
    with doubles():
        recipe.run(make_config(path / "alone", *JOB))
        interrupted(path / "alone", 2, "EXPERIMENT.NAME", "ends together")
    single_precision(path, "alone")
    other_machine = path / "other machine"
    other_machine.mkdir()
    together = start("-m", "tests.hosts.together", folders=(path, other_machine))
    errors = [process.communicate(timeout=LONGEST_SECONDS)[1] for process in together]
    assert (path / "found-0").exists() and (other_machine / "found-1").exists(), "\n".join(errors)
    (path / "errors").write_text("".join(errors))
    (path / "codes").write_text(" ".join(str(process.returncode) for process in together))
    with doubles():
        recipe.run(make_config(path / "together", *JOB, "EXPERIMENT.NAME", "ends alone"), resume=True)
    return path


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, Any]]:
    names = ("found-0", "other machine/found-1")
    return [torch.load(folder / name, weights_only=True) for name in names]


def assert_same_weights(one: RunFolder, other: RunFolder, tolerance: float = 1e-9) -> None:
    states = [load_latest(run)["model"] for run in (one, other)]
    assert list(states[0]) == list(states[1])
    for name, value in states[0].items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(states[1][name], value, rtol=0, atol=tolerance)


def runs(folder: Path) -> dict[str, RunFolder]:
    return {path.name: RunFolder.inside(path) for path in (folder / "digits").iterdir()}


def test_a_job_of_two_is_the_job_of_one(folder: Path) -> None:
    alone, together = runs(folder / "alone"), runs(folder / "together")
    names = sorted(set(alone) - {"ends together", "single"})
    assert names == sorted(set(together) - {"ends alone", "single"})
    assert len(names) == 3, "teacher, vanilla student, student"
    for name in names:
        assert report(together[name]) == report(alone[name]), name
        assert_same_weights(together[name], alone[name])
    flags = alone["kd-digits_student-seed0"].read_flags()
    assert 0 < len(flags.flagged) < 10 and min(c.epoch_flagged or 99 for c in flags.classes) < flags.epochs
    written = together["kd-digits_student-seed0"]
    assert "# processes 2\n" in written.config_yaml.read_text()
    assert written.read_metrics().class_correct == alone["kd-digits_student-seed0"].read_metrics().class_correct
    assert len(list((written.log_folder / "train.events").iterdir())) == 1, "one writer"
    assert (written.log_folder / "worklog.txt").read_text().count("epoch: 2\n") == 1


def test_the_main_process_alone_reads_and_writes_runs(folder: Path) -> None:
    assert [path.name for path in (folder / "other machine").iterdir()] == ["found-1"]


def test_single_precision_rounds_a_little(folder: Path) -> None:
    one, other = (runs(folder / name)["single"] for name in ("alone", "together"))
    correct = [run.read_curves()["rank"] == 1 for run in (one, other)]
    assert (correct[0] == correct[1]).all() and correct[0].any(axis=1).all()
    flags = [[(item.flagged, item.epoch_flagged) for item in run.read_flags().classes] for run in (one, other)]
    assert flags[0] == flags[1] and any(flagged for flagged, _ in flags[0])
    assert_same_weights(one, other, 1e-5)


def test_a_run_goes_on_with_another_number_of_processes(folder: Path) -> None:
    whole = runs(folder / "alone")["kd-digits_student-seed0"]
    for run in (runs(folder / "alone")["ends together"], runs(folder / "together")["ends alone"]):
        assert report(run) == report(whole)
        assert_same_weights(run, whole)


@pytest.mark.parametrize("parts", [1, 4])
@pytest.mark.parametrize("name", UNTAUGHT)
def test_a_step_weighs_every_row_alike(parts: int, name: str, found: list[dict[str, Any]], tmp_path: Path) -> None:
    """Also where one process has no row with a teacher, as the second one does not for class 3."""
    alone = steps(tmp_path, 1, UNTAUGHT[name])
    for here in found:
        for key, weights in alone.items():
            torch.testing.assert_close(here["steps"][parts, name][key], weights, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_methods_stay_in_step(name: str, found: list[dict[str, Any]]) -> None:
    one, other = (here["methods"][name] for here in found)
    for key, value in one["state"].items():
        assert torch.equal(value, other["state"][key]), key
    assert torch.equal(one["context"], other["context"])


def test_the_context_head_is_held_back_in_every_process(found: list[dict[str, Any]]) -> None:
    assert [here["held"] for here in found] == [{"held": True, "trained": False}] * 2


def test_context_is_that_of_all_rows(found: list[dict[str, Any]]) -> None:
    one, other = (here["methods"]["CID"] for here in found)
    names = [name for name in one["before"] if name.endswith(("context_sum", "context_weight"))]
    assert len(names) == 2
    for name in names:
        assert not torch.equal(one["before"][name], other["before"][name])
        torch.testing.assert_close(one["state"][name], one["before"][name] + other["before"][name])
    total, weight = (one["state"][name] for name in sorted(names))
    seen = weight > 0
    assert seen.any() and not seen.all()
    torch.testing.assert_close(one["context"][seen], total[seen] / weight[seen, None])


def test_statistics_of_a_methods_own_modules_are_averaged(found: list[dict[str, Any]]) -> None:
    one, other = (here["methods"]["FITNET"] for here in found)
    name = "distiller.regressor.1.running_mean"
    assert not torch.equal(one["before"][name], other["before"][name])
    torch.testing.assert_close(one["state"][name], (one["before"][name] + other["before"][name]) / 2)


def test_batch_norm_sees_all_rows(found: list[dict[str, Any]]) -> None:
    whole = norms()
    for key in ("output", "rows"):
        both = torch.cat([here["norms"].pop(key) for here in found])
        torch.testing.assert_close(both, whole.pop(key), rtol=1e-4, atol=1e-5)
    for here in found:
        assert here["norms"].keys() == whole.keys() >= {"weight", "bias", "running_mean", "running_var"}
        for key, value in whole.items():
            torch.testing.assert_close(here["norms"][key], value, rtol=1e-4, atol=1e-5)


def test_what_processes_disagree_on_is_an_error_in_all(found: list[dict[str, Any]]) -> None:
    expected = "Expected what was computed to be the same in all 2 processes, but they differ"
    assert [here["disagreements"] for here in found] == [[expected, ""]] * 2


def test_an_error_in_one_process_ends_all_with_one_message(folder: Path) -> None:
    assert (folder / "codes").read_text() == "1 1"
    errors = (folder / "errors").read_text()
    assert errors.count("tllm: ") == 1 and "tllm: Expected finite losses, but got " in errors, errors
    assert "Traceback" not in errors, errors
    failed = folder / "failed/digits/x"
    assert failed.exists() and not (failed / "latest").exists()


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("cuda:1", "to be auto, cpu or cuda for several processes, but got 'cuda:1'"),
        ("mps", "to be auto, cpu or cuda for several processes, but got 'mps'"),
        ("cuda", "Expected at most 2 processes on this machine, one for each GPU, but got one numbered 2; start fewer"),
        ("cpu", None),
    ],
)
def test_each_process_has_a_device(
    device: str, expected: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "world_size", lambda: 3)
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    cfg = make_config(tmp_path, "RUNTIME.DEVICE", device)
    if expected is None:
        assert choose_device(cfg) == torch.device(device)
        return
    with pytest.raises(ConfigError, match=re.escape(expected)):
        choose_device(cfg)


def test_what_the_main_process_cannot_read_is_an_error_everywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[list[Any]] = []

    def main_process(objects: list[Any], src: int, group: Any, device: torch.device) -> None:
        told.append(list(objects))

    def other_process(objects: list[Any], src: int, group: Any, device: torch.device) -> None:
        objects[:] = told[-1]

    def unreadable() -> str:
        raise FileFormatError("no such file")

    for read, expected in ((lambda: "content", "content"), (unreadable, None)):
        for place, broadcast in ((0, main_process), (1, other_process)):
            with monkeypatch.context() as patch:
                patch.setattr(processes, "world_size", lambda: 2)
                patch.setattr(processes, "rank", lambda place=place: place)
                patch.setattr(processes, "_group", lambda: None)
                patch.setattr(torch.distributed, "broadcast_object_list", broadcast)
                if expected:
                    assert processes.from_main(read if place == 0 else pytest.fail) == expected
                else:
                    with pytest.raises(FileFormatError, match="no such file"):
                        processes.from_main(read if place == 0 else pytest.fail)


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no SIGINT for others")
def test_torchrun_and_ctrl_c(tmp_path: Path) -> None:
    options = [*BASE, *JOB, "DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "1000"]
    words = ["train", "--cfg", str(CONFIG), *options, "LOG.PREFIX", str(tmp_path), "EXPERIMENT.NAME", "x"]
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "tllm_plugin"]
    process = subprocess.Popen(
        [sys.executable, *launcher, *words], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + LONGEST_SECONDS
    while not (tmp_path / "digits/x/latest").exists() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=LONGEST_SECONDS)
    assert process.returncode != 0
    assert errors.count("tllm: ") == 1, errors
    assert "interrupted; continue with: torchrun --nproc_per_node 2 -m tllm_plugin train --cfg" in errors, errors
    state = load_latest(RunFolder.inside(tmp_path / "digits/x"))
    assert state["epoch"] >= 1


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["search", "--cfg", str(CONFIG)], "a search"),
        (["demo"], "the demo"),
        (["train", "--host", "repdistiller"], "the host repdistiller"),
        (["test", "a run"], "`tllm test`"),
    ],
)
def test_what_is_for_one_process_is_refused(
    words: list[str], what: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(processes, "joined", nullcontext)
    assert main(words) == 2
    assert f"tllm: Expected one process for {what}, but a launcher started 2; " in capsys.readouterr().err
