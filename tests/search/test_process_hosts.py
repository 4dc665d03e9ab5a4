"""Hosts whose runs are processes: a whole search in a miniature one, a trial that is stopped and goes on, failures."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from optuna import TrialPruned
from yacs.config import CfgNode

from tests.distiller_cases import NUM_CLASSES
from tests.hosts.fork_shaped_host import config
from tests.search.miniature_host import INTERRUPTED_IN, SECONDS_OF_WAITING, WAITING_AFTER
from tllm_plugin.cli.search import savings
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import NonFiniteLossError, TLLMError
from tllm_plugin.hosts.repdistiller.arguments import split_arguments
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.locks import held, is_held
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.runs.search_file import SearchRecord
from tllm_plugin.search import process
from tllm_plugin.search.eta_search import search
from tllm_plugin.search.host import Baselines
from tllm_plugin.search.mdistiller import MdistillerSearch
from tllm_plugin.search.repdistiller import RepDistillerSearch
from tllm_plugin.search.space import Dimension

ROOT = Path(__file__).resolve().parents[2]
WEIGHT, AFTER = "TLLM.CE_WEIGHT", "TLLM.DETECTOR.AFTER_FRACTION"
SPACE = (Dimension(AFTER, (0.34, 0.67)),)
NONE = Baselines(None, None)


class Miniature(MdistillerSearch):
    program = (sys.executable, "-m", "tests.search.miniature_host")

    def place(self, wanted: object) -> Path:
        return ROOT


class Failing(Miniature):
    """Says something and ends with exit code 1."""

    def __init__(self, prefix: Path, said: str) -> None:
        super().__init__(configured(prefix), SPACE)
        self.program = (sys.executable, "-c", f"print({said!r}); raise SystemExit(1)")


def configured(prefix: Path) -> CfgNode:
    cfg = config(prefix)
    cfg.EXPERIMENT = CfgNode({"PROJECT": "p", "NAME": "", "TAG": "t"})
    cfg.DISTILLER = CfgNode({"TYPE": "MLKD"})
    cfg.TLLM.HOLDOUT.SEARCH_FRACTION = 0.2
    cfg.TLLM.DETECTOR.TYPE = "after"
    cfg.freeze()
    return cfg


def epochs_of(host: Miniature, run: RunFolder) -> list[str]:
    log = (host.folder / "logs" / f"{run.log_folder.name}.txt").read_text()
    return [line for line in log.splitlines() if line.startswith("epoch")]


def test_trials_share_their_beginning_and_equal_one_alone_that_was_stopped_and_went_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Miniature(configured(tmp_path / "whole"), SPACE, words=("--cfg", "mine.yaml"))
    outcome = search(host, SPACE)
    record = outcome.record
    assert SearchRecord.read(outcome.path) == record and [item.title for item in record.baselines] == [
        "without detection"
    ]
    assert [trial.values for trial in record.trials] == [{AFTER: 0.67}, {AFTER: 0.34}]
    assert [trial.shared_epochs for trial in record.trials] == [2, 1]
    assert {trial.parent for trial in record.trials} == {record.baselines[0].run}
    runs = [RunFolder.inside(host.folder / trial.run) for trial in record.trials]
    assert [epochs_of(host, run) for run in runs] == [["epoch 3"], ["epoch 2", "epoch 3"]]
    assert record.holdout_samples == 6 * NUM_CLASSES and record.num_classes == NUM_CLASSES
    for trial, run in zip(record.trials, runs, strict=True):
        split = run.read_split()
        assert not set(split.holdout) & set(split.search_holdout) and len(split.search_holdout) == 36
        curves = Curves.from_state(to_state(run.read_search_curves()))
        # As many samples of every class.
        assert trial.score == pytest.approx(float(curves.samples_at(3).correct.float().mean()))
        assert len(trial.curve) == trial.epochs == 3
        assert run.read_flags().flagged == tuple(range(NUM_CLASSES))
    assert record.chosen is not None
    assert record.chosen.score == max(trial.score for trial in record.trials if trial.score is not None)
    assert savings(record) == "saved: 6 epochs were trained instead of 6"
    assert host.next_command({AFTER: 0.34}) == (
        "tllm train --host mdistiller --cfg mine.yaml TLLM.HOLDOUT.SEARCH_FRACTION 0.0 "
        "TLLM.DETECTOR.AFTER_FRACTION 0.34"
    )

    stopped, values, seen = Miniature(configured(tmp_path / "stopped"), SPACE), {AFTER: 0.34}, []
    run, shared = stopped.run_of(values), host.run_of(values)

    def watch(curves: Curves) -> None:
        seen.append(curves.epochs[-1])
        deadline = time.monotonic() + SECONDS_OF_WAITING
        while epochs_of(stopped, run) != ["epoch 1", "epoch 2"] and time.monotonic() < deadline:
            time.sleep(0.05)
        raise TrialPruned

    monkeypatch.setenv(WAITING_AFTER, "2")
    with pytest.raises(TrialPruned):
        stopped.train(values, NONE, (), watch)
    monkeypatch.delenv(WAITING_AFTER)
    assert len(seen) == 1 and seen[0] < 3 and not run.is_finished()
    assert not is_held(stopped.folder / "locks" / run.log_folder.name)
    assert stopped.train(values, NONE, ()).path == run.path and run.is_finished()
    assert epochs_of(stopped, run) == ["epoch 1", "epoch 2", "epoch 3"]
    assert_equal_runs(run, shared)

    # Between the host's checkpoint and whatever comes after it.
    interrupted = Miniature(configured(tmp_path / "interrupted"), SPACE)
    monkeypatch.setenv(INTERRUPTED_IN, "2")
    with pytest.raises(TLLMError, match="KeyboardInterrupt"):
        interrupted.train(values, NONE, ())
    monkeypatch.delenv(INTERRUPTED_IN)
    run = interrupted.train(values, NONE, ())
    assert epochs_of(interrupted, run) == ["epoch 1", "epoch 3"]
    assert_equal_runs(run, shared)


def assert_equal_runs(run: RunFolder, shared: RunFolder) -> None:
    for name in ("curves_npz", "search_curves_npz", "flags_json", "split_json"):
        assert getattr(run, name).read_bytes() == getattr(shared, name).read_bytes(), name
    models = [torch.load(item.log_folder / "latest", weights_only=True)["model"] for item in (run, shared)]
    weights = [name for name in models[0] if "extra_state" not in name]
    assert weights and all(torch.equal(models[0][name], models[1][name]) for name in weights)


def test_a_child_holds_the_lock_of_a_worker_that_died(tmp_path: Path) -> None:
    with held(tmp_path / "lock") as lock:
        child = subprocess.Popen(["sleep", "30"], pass_fds=(lock,))
    assert is_held(tmp_path / "lock")
    child.kill()
    child.wait()
    assert not is_held(tmp_path / "lock")


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Interrupts are not ignored, as they are if the tests were started in the background by a script."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_command_is_stopped_where_interrupts_are_ignored() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        child = subprocess.Popen(["sleep", "30"])
        process._stop(child)
    finally:
        signal.signal(signal.SIGINT, before)
    assert child.returncode == -signal.SIGTERM


# Interrupts that come while one is handled merge into one: where the second has to be heard, there are many, far apart.
@pytest.mark.parametrize(
    "swallowed, code, interrupts, patience_seconds", [(1, 7, 100, 3.0), (1000, -signal.SIGKILL, 3, 1.0)]
)
def test_a_command_that_swallows_an_interrupt_is_interrupted_again_and_killed_in_the_end(
    swallowed: int,
    code: int,
    interrupts: int,
    patience_seconds: float,
    interruptible: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(process, "_INTERRUPTS", interrupts)
    monkeypatch.setattr(process, "_PATIENCE_SECONDS", patience_seconds)
    script = f"""
import signal, sys, time
seen = []
def again(*_):
    seen.append(1)
    if len(seen) > {swallowed}: sys.exit(7)
signal.signal(signal.SIGINT, again)
print("ready", flush=True)
while True: time.sleep(0.05)
"""
    child = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE)
    assert child.stdout is not None and child.stdout.readline() == b"ready\n"
    process._stop(child)
    assert child.returncode == code


def test_a_diverging_trial_is_told_from_a_broken_host(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match="^Expected finite losses, but got kd = nan"):
        Failing(tmp_path / "a", "tllm: Expected finite losses, but got kd = nan").train({}, NONE, ())
    with pytest.raises(TLLMError, match=r"train --host mdistiller .* exit code 1: no such teacher; see .*\.txt"):
        Failing(tmp_path / "b", "no such teacher").train({}, NONE, ())
    quiet = Failing(tmp_path / "c", "")
    quiet.program = (sys.executable, "-c", "pass")
    with pytest.raises(TLLMError, match="to leave a finished run in .*, but got none"):
        quiet.train({}, NONE, ())


def test_vanilla_runs_of_mdistiller_do_without_a_distillers_loop(tmp_path: Path) -> None:
    cfg = configured(tmp_path)
    cfg.defrost()
    cfg.TLLM.DETECTOR.TYPE, cfg.TLLM.TRAINER = "reference", "dot"
    asked = []

    class Asked(Miniature):
        def _trained(self, wanted: object, *_: object) -> RunFolder:
            asked.append(self.config(wanted))
            return self.run_named("vanilla")

    host = Asked(cfg, SPACE)
    baselines = host.prepare(taught=True)
    assert [item.DISTILLER.TYPE for item in asked] == ["NONE", "MLKD"]
    assert [item.TLLM.TRAINER for item in asked] == ["base", "dot"]
    assert {item.TLLM.DETECTOR.TYPE for item in asked} == {"none"}
    host.train({WEIGHT: 2.0}, baselines, ())
    assert baselines.vanilla is not None and str(baselines.vanilla.path.resolve()) == asked[-1].TLLM.DETECTOR.REFERENCE
    host.train_final({WEIGHT: 2.0})
    assert {item.TLLM.HOLDOUT.SEARCH_FRACTION for item in asked[-2:]} == {0.0} and asked[-1].TLLM.CE_WEIGHT == 2.0
    assert asked[-2].DISTILLER.TYPE == "NONE"


def test_arguments_of_repdistiller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    words = [
        "--path_t",
        "t/last.pth",
        "--distill",
        "kd",
        "-a",
        "0.9",
        "--epochs",
        "7",
        "--tllm",
        "--tllm_ce_weight",
        "3",
        "--tllm_seed",
        "5",
    ]
    arguments, problems = split_arguments(words)
    assert not problems and (arguments.epochs, arguments.seed, arguments.node.CE_WEIGHT) == (7, 5, 3.0)
    trained: list[list[str]] = []

    class Asked(RepDistillerSearch):
        def _trained(self, wanted: object, *_: object) -> RunFolder:
            trained.append(self.command(wanted, resume=False))
            return self.run_named("vanilla")

    host = Asked(arguments, (Dimension(WEIGHT, (1.0, 2.0)),), tmp_path)
    host.train({WEIGHT: 2.0}, host.prepare(taught=False), ())
    vanilla, trial = trained
    assert trial[:4] == ["train", "--host", "repdistiller", "--"]
    parsed, _ = split_arguments(trial[4:])
    assert (parsed.node.CE_WEIGHT, parsed.node.HOLDOUT.SEARCH_FRACTION, parsed.seed) == (2.0, 0.05, 5)
    assert parsed.paths == (("path_t", str(tmp_path / "t" / "last.pth")),)
    assert parsed.others == ("--distill", "kd", "-a", "0.9", "--epochs", "7")
    assert str(host.folder / "vanilla" / "tllm") == parsed.node.DETECTOR.REFERENCE
    assert split_arguments(vanilla[4:])[0].others[4:-2] == ("--distill", "kd", "-r", "1", "-a", "0", "-b", "0")
    assert "--tllm_ce_weight 2.0" in host.next_command({WEIGHT: 2.0}) and "t/last.pth" in host.next_command({})
    for bad, message in (
        (["--tllm_eta", "7", "--path_t", "t"], "Expected `--tllm_eta` to be in"),
        (["--tllm_eta", "0.1"], "Expected `--path_t` to name the teacher's checkpoint"),
        (["--tllm_eta", "much"], "`--tllm_eta` to be a number"),
    ):
        assert message in " ".join(split_arguments(bad)[1])
