"""A killed run goes on as if nothing had happened: always with the stand-in, and with the real host where it is."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests.hosts.repdistiller.conftest import environment
from tests.hosts.repdistiller.processes import (
    LAUNCHER,
    apply_patches,
    assert_same_results,
    kill_when,
    only_run,
    python,
    save_teacher,
    state_of,
)
from tests.hosts.small_images import CLASSES, make_images
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder

# Options of a method, for a few epochs.
METHOD = {
    "crd": ("-a", "0.9", "-b", "0.8", "--nce_k", "4"),
    "cid": ("--cid_warmup_epochs", "1", "--cid_b", "1"),
}
ROOT = Path(__file__).resolve().parents[3]
SCRIPT = ("-m", "tests.hosts.repdistiller.stand_in_script")
# Flags every class whose mean probability was higher before: some in any run, from the second epoch on.
NAIVE = (
    *("--tllm", "--tllm_detector", "teaching_curve", "--tllm_confidence", "0", "--tllm_eta", "0.001"),
    *("--tllm_score", "true_prob"),
    *("--tllm_warmup", "0", "--tllm_curve_smoothing", "0", "--tllm_holdout", "0.25", "--tllm_seed", "0"),
)


@pytest.mark.parametrize("kind", ["rkd", "srrl", "cid"])
def test_a_killed_run_of_the_stand_in_continues_exactly(tmp_path: Path, kind: str) -> None:
    make_images(tmp_path / "images")
    torch.manual_seed(1)
    teacher = save_teacher(tmp_path, create_model("resnet14", num_classes=CLASSES), "resnet14")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    words = (
        *(
            *SCRIPT,
            "--distill",
            kind,
            *METHOD.get(kind, ()),
            "--dataset",
            "imagefolder",
            "--data_folder",
            str(tmp_path / "images"),
        ),
        *("--path_t", str(teacher), "--model_s", "resnet8", *NAIVE),
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert "init stage" in python(whole, env, *words).stdout
    kill_when("Epoch: [3][0/", killed, env, *words)
    run = only_run(killed)
    assert state_of(run)["epoch"] == 2 and not run.read_metrics().finished
    resumed = python(killed, env, *words, "--tllm_resume")
    assert "init stage" not in resumed.stdout and "trained 2" not in resumed.stdout
    assert_same_results(only_run(whole), run)
    flags = run.read_flags()
    assert any(item.flagged and item.epoch_flagged == 2 for item in flags.classes), "nothing to carry over"
    assert run.config_yaml.exists()
    check_context(run, kind)


@pytest.mark.parametrize("kind", ["crd", "cid"])
def test_the_real_host_killed_and_resumed_by_script_equals_the_launchers_run(
    scratch: Path, tmp_path: Path, kind: str
) -> None:
    torch.manual_seed(1)
    teacher = save_teacher(tmp_path, create_model("resnet14", num_classes=CLASSES), "resnet14")
    words = (
        *("--path_t", str(teacher), "--model_s", "resnet8", "--dataset", "imagefolder"),
        *("--data_folder", str(tmp_path / "images"), "--batch_size", "16", "--num_workers", "0", "--epochs", "3"),
        *("--lr_decay_epochs", "1", "--distill", kind, *METHOD[kind], *NAIVE),
    )
    env = environment(scratch)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    python(whole, env, *LAUNCHER, *words)
    apply_patches(scratch)
    script = str(scratch / "train_student.py")
    kill_when("Epoch: [3][0/", killed, env, script, *words)
    run = only_run(killed)
    assert state_of(run)["epoch"] == 2
    python(killed, env, script, *words, "--tllm_resume")
    assert_same_results(only_run(whole), run)
    check_context(run, kind)


def check_context(run: RunFolder, kind: str) -> None:
    """In CID's third epoch the context of the second predicts: what is resumed needs the sums of what was killed."""
    if kind == "cid":
        for pattern in ("*best.pth", "*last.pth"):
            state = torch.load(next(run.log_folder.glob(pattern)), weights_only=True)["model"]
            assert state["has_context"] and bool(state["context"].any())
