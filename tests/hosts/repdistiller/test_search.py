"""`tllm search --host repdistiller` in the real host: its own script trains the vanilla student and every trial."""

from __future__ import annotations

from pathlib import Path

from tests.hosts.repdistiller.conftest import environment
from tests.hosts.repdistiller.processes import SHORT, images, only_run, python, teacher
from tests.hosts.small_images import CLASSES
from tllm_plugin.runs.search_file import SearchRecord

NAIVE = (
    "--tllm_score",
    "reciprocal_rank",
    "--tllm_warmup",
    "0",
    "--tllm_confidence",
    "0",
    "--tllm_curve_smoothing",
    "0",
    "--tllm_seed",
    "3",
)


def test_search(scratch: Path, tmp_path: Path) -> None:
    holdouts = ("--tllm_holdout", "0.25", "--tllm_search_holdout", "0.35")
    own = ("--path_t", teacher(tmp_path), *SHORT, *images(tmp_path), *holdouts, *NAIVE, "--epochs", "2")
    host = ("--distill", "kd", "-r", "0.1", "-a", "0.9")
    words = ("-m", "tllm_plugin", "search", "--host", "repdistiller", "--eta", "0.9", "0.01", "--no-baseline", "--")
    done = python(tmp_path / "work", environment(scratch), *words, *host, *own)
    (path,) = (tmp_path / "work" / "save" / "tllm_search").glob("*/search-*.json")
    record = SearchRecord.read(path)
    assert [trial.values["TLLM.DETECTOR.ETA"] for trial in record.trials] == [0.9, 0.01]
    assert [item.title for item in record.baselines] == ["vanilla"] and record.holdout_samples == 5 * CLASSES
    for trial in (*record.trials, *record.baselines):
        run = only_run(path.parent / Path(trial.run).parts[0])
        assert run.path == (path.parent / trial.run / "tllm").resolve() and run.read_metrics().finished
        split = run.read_split()
        assert len(split.search_holdout) == len(split.holdout) == 5 * CLASSES
        assert not set(split.holdout) & set(split.search_holdout) and trial.epochs == 2
    assert [len(trial.flagged) > 0 for trial in record.trials] == [False, True]
    assert "next: tllm train --host repdistiller -- --distill kd" in done.stdout
    again = python(tmp_path / "work", environment(scratch), *words, *host, *own)
    assert again.stdout == done.stdout and len(list(path.parent.glob("logs/*"))) == 3
