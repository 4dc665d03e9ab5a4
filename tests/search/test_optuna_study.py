"""The shared study: order, budget, failures, storages, and trials whose worker is gone. Nothing is trained here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState

from tests.analysis.planted_runs import write_run
from tllm_plugin.core.errors import ConfigError, NonFiniteLossError, TLLMError
from tllm_plugin.runs.locks import held, is_held
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search import storage as storage_module
from tllm_plugin.search.optuna_study import MAX_TAKEOVERS, SharedStudy
from tllm_plugin.search.space import Dimension

ETA = "TLLM.DETECTOR.ETA"
GRID = (Dimension(ETA, (0.02, 0.1, 0.05)),)
RANGE = (Dimension(ETA, (), 0.01, 0.3, log=True), Dimension("TLLM.MIN_ROWS", (), 1, 8, whole=True))


def shared(folder: Path, space: tuple[Dimension, ...] = GRID, **how: Any) -> SharedStudy:
    """Return a study in a journal, which is opened sooner than a database."""
    folder.mkdir(exist_ok=True)
    return SharedStudy(f"journal:{folder / 'journal'}", folder, space, **how)


class Recorder:
    """Scores a trial by its eta, and remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[dict[str, Any]] = []

    def __call__(self, values: dict[str, Any], trial: object) -> float:
        self.seen.append(values)
        return 1.0 - abs(values[ETA] - 0.05)


@pytest.mark.parametrize("storage", ["", "journal:{}/study.journal", "sqlite:///{}/other.db"])
def test_the_grid_is_done_once(storage: str, tmp_path: Path) -> None:
    record = Recorder()
    address = storage.format(tmp_path)
    SharedStudy(address, tmp_path / "search", GRID).work(record)
    assert [values[ETA] for values in record.seen] == [0.1, 0.05, 0.02]
    again = SharedStudy(address, tmp_path / "search", GRID)
    again.work(record)
    assert len(record.seen) == 3
    assert [trial.value for trial in again.finished()] == pytest.approx([0.95, 1.0, 0.97])
    assert list((tmp_path / "search" / "workers").iterdir()) == []


def test_tpe_keeps_its_budget_and_goes_on(tmp_path: Path) -> None:
    record = Recorder()
    shared(tmp_path, RANGE, trials=2, seed=3).work(record)
    assert len(record.seen) == 2
    shared(tmp_path, RANGE, trials=5, seed=3).work(record)
    assert len(record.seen) == 5 and len({values[ETA] for values in record.seen}) == 5
    for values in record.seen:
        assert 0.01 <= values[ETA] <= 0.3 and type(values["TLLM.MIN_ROWS"]) is int
    whole = Recorder()
    shared(tmp_path / "other", RANGE, trials=5, seed=3).work(whole)
    assert whole.seen[:2] == record.seen[:2], "the same seed draws the same trials"


def test_a_diverging_trial_fails_alone(tmp_path: Path) -> None:
    def train(values: dict[str, Any], trial: object) -> float:
        if values[ETA] == 0.05:
            raise NonFiniteLossError("the loss became NaN")
        return 0.5

    study = shared(tmp_path)
    study.work(train)
    assert [trial.value for trial in study.finished()] == [0.5, None, 0.5]
    assert study.finished()[1].user_attrs["error"] == "the loss became NaN"
    shared(tmp_path).work(lambda values, trial: pytest.fail("a failed trial is not tried again"))


def abandon(study: SharedStudy) -> None:
    """Begin a trial as a worker that is killed then: its lock is free, and it tells the study nothing."""
    with held(study.folder / "workers" / study.worker):
        assert study._begin() is not None


def takeovers(study: SharedStudy) -> list[int]:
    return [trial.user_attrs["takeovers"] for trial in study.finished() if "takeovers" in trial.user_attrs]


def test_an_abandoned_trial_is_taken_over(tmp_path: Path) -> None:
    abandon(shared(tmp_path))
    record = Recorder()
    study = shared(tmp_path)
    study.work(record)
    assert sorted(values[ETA] for values in record.seen) == [0.02, 0.05, 0.1]
    assert len(study.finished()) == 3
    failed = study.study.get_trials(states=(TrialState.FAIL,))
    assert [trial.params for trial in failed] == [{ETA: 0.1}]
    assert takeovers(study) == [1]


def test_a_trial_that_was_queued_again_by_a_worker_that_died_then_is_there_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    abandon(shared(tmp_path))
    dying, record = shared(tmp_path), Recorder()
    with monkeypatch.context() as patch:
        patch.setattr(dying.study, "tell", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            dying._begin()
    study = shared(tmp_path)
    study.work(record)
    assert sorted(values[ETA] for values in record.seen) == [0.02, 0.05, 0.1]
    assert len(study.finished()) == 3 and takeovers(study) == [1]


ONE = (Dimension(ETA, (0.1,)),)


def test_a_trial_on_which_workers_die_is_given_up(tmp_path: Path) -> None:
    for _ in range(MAX_TAKEOVERS + 1):
        abandon(shared(tmp_path, ONE))
    study = shared(tmp_path, ONE)
    study.work(lambda values, trial: pytest.fail("it was given up"))
    assert study.finished()[0].user_attrs["error"] == "given up: 4 workers died on it"


@pytest.mark.parametrize("grows", [True, False])
def test_only_deaths_without_one_more_epoch_count(grows: bool, tmp_path: Path) -> None:
    run, record = RunFolder.inside(tmp_path / "run"), Recorder()
    for number in range(MAX_TAKEOVERS + 1):
        abandon(shared(tmp_path, ONE, run_of=lambda values: run))
        # Whoever resumes may write the last epoch once more.
        write_run(run.log_folder, classes=2, per_class=2, epochs=number + 1 if grows else 1)
    study = shared(tmp_path, ONE, run_of=lambda values: run)
    study.work(record)
    assert record.seen == ([{ETA: 0.1}] if grows else [])
    assert ("error" in study.finished()[0].user_attrs) is not grows


@pytest.mark.parametrize("error", [KeyboardInterrupt(), TLLMError("no such data"), OSError("disk full")])
def test_a_trial_that_was_interrupted_or_met_an_error_of_others_goes_on(error: BaseException, tmp_path: Path) -> None:
    def stop(values: dict[str, Any], trial: object) -> float:
        raise error

    for _ in range(MAX_TAKEOVERS + 2):
        with pytest.raises(type(error)):
            shared(tmp_path).work(stop)
    study, record = shared(tmp_path), Recorder()
    study.work(record)
    assert sorted(values[ETA] for values in record.seen) == [0.02, 0.05, 0.1]
    assert len(study.finished()) == 3 and all(trial.value for trial in study.finished())
    assert set(takeovers(study)) == {0}


@pytest.mark.parametrize("trials", [None, 3])
def test_a_trial_whose_run_is_gone_is_trained_again(trials: int | None, tmp_path: Path) -> None:
    def run_of(values: dict[str, Any]) -> RunFolder:
        return RunFolder.inside(tmp_path / f"run {values[ETA]}")

    seen = []

    def train(values: dict[str, Any], trial: object) -> float:
        run_of(values).create()
        run_of(values).write_metrics(MetricsRecord(None, (), (), (1.0,), None, 1, finished=True))
        seen.append(values)
        return values[ETA]

    how: dict[str, Any] = {"run_of": run_of, "trials": trials, "space": GRID if trials is None else RANGE}
    shared(tmp_path, **how).work(train)
    first = [trial.params for trial in shared(tmp_path, **how).scored()]
    assert len(seen) == len(first) == 3
    shared(tmp_path, **how).work(lambda values, trial: pytest.fail("all runs are there"))
    run_of(seen[1]).metrics_json.unlink()
    study = shared(tmp_path, **how)
    assert seen[1] not in [trial.params for trial in study.scored()]
    study.work(train)
    assert seen[3:] == [seen[1]]
    assert sorted(trial.value or 0 for trial in study.finished()) == sorted(values[ETA] for values in first)


def test_what_the_trials_have_in_common_makes_another_study(tmp_path: Path) -> None:
    record = Recorder()
    for around in ("warm-up 1", "warm-up 2", "warm-up 1"):
        shared(tmp_path, around=around).work(record)
    assert len(record.seen) == 6


def test_a_trial_of_a_living_worker_is_left_alone(tmp_path: Path) -> None:
    first, second = (shared(tmp_path) for _ in range(2))
    with held(tmp_path / "workers" / first.worker):
        assert is_held(tmp_path / "workers" / first.worker)
        begun = first._begin()
        other = second._begin()
        assert begun is not None and other is not None and other.params != begun.params
        assert len(second._under_way()) == 2
    assert not is_held(tmp_path / "workers" / first.worker)


@pytest.mark.parametrize(
    "address", ["nonsense", "sqlite:////no/such/folder/study.db", "nodb://x", "journal:/no/such/f"]
)
def test_a_storage_that_cannot_be_opened(address: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected `--storage` to be journal:FILE"):
        SharedStudy(address, tmp_path, GRID)


def test_a_search_of_an_earlier_version_goes_on_in_its_database(tmp_path: Path) -> None:
    record = Recorder()
    SharedStudy(f"sqlite:///{tmp_path / 'study.db'}", tmp_path, GRID).work(record)
    SharedStudy("", tmp_path, GRID).work(lambda values, trial: pytest.fail("it was done"))
    assert not (tmp_path / "study.journal").exists()


@pytest.mark.parametrize("left", [b"{", b'{"op_code": 4, "worker_id": "x"', b"\0\0"])
def test_half_a_line_of_a_journal_is_removed(left: bytes, tmp_path: Path) -> None:
    record = Recorder()
    SharedStudy("", tmp_path, GRID).work(record)
    journal = tmp_path / "study.journal"
    whole = journal.read_bytes()
    journal.write_bytes(whole + left)
    again = SharedStudy("", tmp_path, (Dimension(ETA, (0.3,)),))
    again.work(record)
    assert [values[ETA] for values in record.seen] == [0.1, 0.05, 0.02, 0.3]
    assert journal.read_bytes().startswith(whole) and left not in journal.read_bytes()[len(whole) :].splitlines()
    assert len(SharedStudy("", tmp_path, GRID).finished()) == 3


HOLDER = """
import sys, time
from pathlib import Path
from tllm_plugin.search.storage import open_journal

storage = open_journal(Path(sys.argv[1]))
storage._backend._lock.acquire()
print("held", flush=True)
time.sleep(600)
"""


def test_a_journal_s_lock_dies_with_its_process(tmp_path: Path) -> None:
    study = SharedStudy("", tmp_path, GRID)
    command = [sys.executable, "-c", HOLDER, str(tmp_path / "study.journal")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as process:
        try:
            assert process.stdout is not None and process.stdout.readline() == b"held\n"
            assert is_held(tmp_path / "study.journal.lock")
        finally:
            process.kill()
    assert not is_held(tmp_path / "study.journal.lock")
    study.work(Recorder())
    assert len(study.finished()) == 3


def test_half_a_line_that_another_worker_leaves_behind_is_removed(tmp_path: Path) -> None:
    study, record = SharedStudy("", tmp_path, GRID), Recorder()
    with (tmp_path / "study.journal").open("ab") as file:
        file.write(b'{"op_code": 4, "worker')  # Killed, or the disk was full, while this worker lives.
    study.work(record)
    assert len(record.seen) == 3
    SharedStudy("", tmp_path, GRID).work(lambda values, trial: pytest.fail("it was done"))


def test_a_file_that_is_no_journal_is_named(tmp_path: Path) -> None:
    (tmp_path / "study.journal").write_text("something else\nand more\n")
    with pytest.raises(ConfigError, match=r"none, that is, a journal in .*: .*study\.journal is damaged"):
        SharedStudy("", tmp_path, GRID)


def test_a_journal_that_cannot_be_mended_does_not_stay_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = SharedStudy("", tmp_path, GRID)
    with monkeypatch.context() as patch:
        patch.setattr(storage_module, "_remove_half_a_line", lambda journal: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(TLLMError, match="study.journal: no"):
            study.study.set_user_attr("a", 1)
    assert not is_held(tmp_path / "study.journal.lock")
    study.study.set_user_attr("a", 2)
    assert study.study.user_attrs["a"] == 2
