"""`tllm search --host mdistiller` in the real host: its own script trains the vanilla student and every trial; a trial
that begins where it parts from another one equals the same run alone, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from yacs.config import CfgNode

from tests.hosts.digits_runs import assert_equal
from tests.hosts.mdistiller.conftest import environment
from tests.hosts.mdistiller.processes import BASE, seeded, train
from tests.hosts.small_images import CLASSES
from tllm_plugin.core.curves import Curves
from tllm_plugin.models import create_model
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.runs.search_file import SearchRecord
from tllm_plugin.search.choice import estimate


def test_search(scratch: Path) -> None:
    seeded(scratch)
    torch.manual_seed(1)
    torch.save({"model": create_model("resnet20", num_classes=200).state_dict()}, scratch / "teacher.pth")
    (scratch / "base.yaml").write_text(BASE)
    options = ("SOLVER.EPOCHS", "2", "TLLM.HOLDOUT.SEARCH_FRACTION", "0.35")
    options = (*options, "DISTILLER.TEACHER_CHECKPOINT", str(scratch / "teacher.pth"))
    words = ["search", "--host", "mdistiller", "--cfg", "base.yaml", "--eta", "0.9", "0.01", "--no-baseline", *options]
    command = [sys.executable, "-m", "tllm_plugin", *words]
    done = subprocess.run(command, cwd=scratch, env=environment(scratch), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    (path,) = (scratch / "output" / "p").glob("t-search-*/search-*.json")
    record = SearchRecord.read(path)
    assert [trial.values["TLLM.DETECTOR.ETA"] for trial in record.trials] == [0.9, 0.01]
    assert [item.title for item in record.baselines] == ["vanilla"] and record.holdout_samples == 5 * CLASSES
    for trial in (*record.trials, *record.baselines):
        run = RunFolder.inside(path.parent / trial.run)
        split = run.read_split()
        assert len(split.search_holdout) == len(split.holdout) == 5 * CLASSES
        assert not set(split.holdout) & set(split.search_holdout)
        curves = Curves.from_state(to_state(run.read_search_curves()))
        assert curves.sample_ids.tolist() == list(split.search_holdout) and curves.epochs == [1, 2]
        right = curves.samples_at(2).correct
        assert trial.score == estimate(right, curves.labels, curves.num_classes).value
    assert (
        "chosen: TLLM.DETECTOR.ETA" in done.stdout
        and "next: tllm train --host mdistiller --cfg base.yaml" in done.stdout
    )
    first, second = record.trials
    assert len(first.flagged) < len(second.flagged), "the naive rule of the test's config flags at once"
    assert (first.shared_epochs, second.shared_epochs, second.parent) == (0, 1, first.run)

    shared = RunFolder.inside(path.parent / second.run)
    config = CfgNode.load_cfg((path.parent / "configs" / f"{shared.log_folder.name}.yaml").read_text())
    config.EXPERIMENT.NAME = "alone"
    train(scratch, base=config.dump())
    alone = RunFolder.inside(scratch / "output" / "p" / "alone")
    for name in ("curves_npz", "search_curves_npz", "flags_json", "split_json", "predictions_npz"):
        assert getattr(alone, name).read_bytes() == getattr(shared, name).read_bytes(), name
    latest = [torch.load(run.log_folder / "latest", weights_only=True) for run in (alone, shared)]
    for name in ("model", "optimizer", "epoch", "best_acc"):
        assert_equal(latest[0][name], latest[1][name], name)


@pytest.mark.parametrize(
    ("option", "told"),
    [
        (("TLLM.LABEL_SMOOTHING", "2.0"), "Expected `TLLM.LABEL_SMOOTHING` to be "),
        (("DISTILLER.TYPE", "NONE"), "Expected `DISTILLER.TYPE` to be a distiller for a search, but got 'NONE'"),
    ],
)
def test_what_cannot_be_searched(option: tuple[str, str], told: str, scratch: Path) -> None:
    (scratch / "base.yaml").write_text(BASE)
    words = ("-m", "tllm_plugin", "search", "--host", "mdistiller", "--cfg", "base.yaml", *option)
    done = subprocess.run(
        [sys.executable, *words], cwd=scratch, env=environment(scratch), capture_output=True, text=True
    )
    assert (done.returncode, done.stderr.count("Expected")) == (2, 1) and told in done.stderr
    assert not (scratch / "output").exists()
