"""Whole runs of the real mdistiller, by its own script or by `tllm train --host`, in processes of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.hosts.digits_runs import assert_equal
from tests.hosts.mdistiller.conftest import environment, make_cifar100
from tests.hosts.mdistiller.processes import BASE, apply_patch, seeded, train
from tests.hosts.small_images import CLASSES, TRAIN
from tllm_plugin.core.curves import Curves
from tllm_plugin.models import create_model
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder


def folder(root: Path, *options: str) -> Path:
    """Where the host logs: it makes the name of tag and overrides."""
    return (
        root / "output" / "p" / ("t" + ",".join(f"{k}:{v}" for k, v in zip(options[::2], options[1::2], strict=True)))
    )


@pytest.fixture
def prepared(scratch: Path) -> Path:
    """A copy with a random teacher and the curves of a vanilla student."""
    seeded(scratch)
    torch.manual_seed(1)
    torch.save({"model": create_model("resnet20", num_classes=200).state_dict()}, scratch / "teacher.pth")
    train(scratch, *VANILLA)
    return scratch


VANILLA = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none")


def detecting(root: Path) -> tuple[str, ...]:
    return (
        *("DISTILLER.TEACHER_CHECKPOINT", str(root / "teacher.pth")),
        *("TLLM.DETECTOR.REFERENCE", str(folder(root, *VANILLA) / "tllm")),
    )


def test_run_resume_and_what_is_left_behind(prepared: Path) -> None:
    options = detecting(prepared)
    train(prepared, *options)
    # The host's folder holds the options' values; a path among them nests it.
    whole = next(path.parent for path in (prepared / "output").rglob("flags.json") if "teacher" in str(path))
    run = RunFolder(whole)
    flags = run.read_flags()
    assert flags.epochs == 3 and flags.num_classes == CLASSES
    assert any(item.flagged for item in flags.classes), "nothing was flagged, so the resume below shows little"
    split = run.read_split()
    assert len(split.holdout) == CLASSES * round(TRAIN * 0.25)
    latest = torch.load(run.log_folder / "latest", weights_only=True)
    assert set(latest) == {"epoch", "model", "optimizer", "best_acc"}
    student = torch.load(run.log_folder / "student_best", weights_only=True)
    assert set(student) == {"model"}
    best = torch.load(run.student_best_holdout, weights_only=True)
    assert set(best["model"]) == set(student["model"])
    means = Curves.from_state(to_state(run.read_curves())).class_curves().mean(1)
    assert best["epoch"] == int(np.flatnonzero(means.numpy() == means.max().item())[-1]) + 1
    worklog = (run.log_folder / "worklog.txt").read_text()
    assert worklog.count("epoch: ") == 3 and "best_acc" in worklog
    assert list((run.log_folder / "train.events").iterdir())

    # Go back to the end of epoch 2, past the first decay of the learning rate, and continue.
    whole_latest = latest
    files = {name: getattr(run, name).read_bytes() for name in ("flags_json", "curves_npz", "split_json")}
    (run.log_folder / "latest").write_bytes((run.log_folder / "epoch_2").read_bytes())
    for name in ("flags_json", "curves_npz"):
        getattr(run, name).unlink()
    train(prepared, *options, resume=True)
    resumed = torch.load(run.log_folder / "latest", weights_only=True)
    assert_equal(whole_latest, resumed)
    assert {name: getattr(run, name).read_bytes() for name in files} == files


@pytest.mark.parametrize(
    "kind", ["AT", "CRD", "DKD", "FITNET", "KDSVD", "NST", "OFD", "PKT", "REVIEWKD", "RKD", "SP", "VID", "SRRL", "CID"]
)
def test_every_distiller_trains_under_the_trainer(prepared: Path, kind: str) -> None:
    options = ("DISTILLER.TYPE", kind, "SOLVER.EPOCHS", "2", *detecting(prepared))
    if kind == "CRD":
        check_contrast(prepared)
    train(prepared, *options)
    runs = [path for path in (prepared / "output").rglob("flags.json") if f"TYPE:{kind}" in str(path)]
    assert len(runs) == 1 and RunFolder(runs[0].parent).read_flags().epochs == 2


def test_teacher_stage_and_what_it_leaves(scratch: Path) -> None:
    seeded(scratch)
    stage = ("DISTILLER.TYPE", "SFTN", "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "1")
    train(scratch, *stage)
    checkpoint = folder(scratch, *stage) / "student_latest"
    saved = torch.load(checkpoint, weights_only=True)["model"]
    create_model("resnet20", num_classes=200).load_state_dict(saved)
    student = ("DISTILLER.TYPE", "CID", "TLLM.DETECTOR.TYPE", "none", "CID.WARMUP_EPOCHS", "1", "SOLVER.EPOCHS", "2")
    train(scratch, *student, "SOLVER.NESTEROV", "True", "DISTILLER.TEACHER_CHECKPOINT", str(checkpoint))
    (latest,) = [path for path in (scratch / "output").rglob("latest") if "TYPE:CID" in str(path)]
    state = torch.load(latest, weights_only=True)
    taught_by = "module.distiller.teacher."
    assert all(torch.equal(state["model"][taught_by + key], value) for key, value in saved.items())
    assert state["model"]["module.distiller.student.has_context"]
    groups = state["optimizer"]["param_groups"]
    assert [group["nesterov"] for group in groups] == [True, True] and groups[1]["weight_decay"] == 0.0
    # In the first epoch, which has no context, the context head was left alone.
    first = torch.load(latest.with_name("epoch_1"), weights_only=True)["optimizer"]["state"]
    assert len(state["optimizer"]["state"]) - len(first) == 2
    # What the host's tools/eval.py does with the weights of a student.
    with pytest.raises(RuntimeError, match="context_head"):
        create_model("resnet8", num_classes=200).load_state_dict(
            torch.load(latest.with_name("student_latest"), weights_only=True)["model"]
        )


def check_contrast(root: Path) -> None:
    """Let CRD's memory refuse every index of the hold-out."""
    split = RunFolder(folder(root, *VANILLA) / "tllm").read_split()
    path = root / "mdistiller" / "distillers" / "CRD.py"
    text = path.read_text()
    needle = "    def crd_loss(self, f_s, f_t, idx, contrast_idx):\n"
    assert needle in text
    held = f"{{{', '.join(map(str, split.holdout))}}}"
    check = f"        assert not {held} & set(contrast_idx.flatten().tolist() + idx.tolist())\n"
    path.write_text(text.replace(needle, needle + check))


@pytest.mark.parametrize(("trainer", "kind"), [("dot", "KD"), ("crd_dot", "CRD")])
def test_other_trainers_of_the_host(prepared: Path, trainer: str, kind: str) -> None:
    train(prepared, "DISTILLER.TYPE", kind, "TLLM.TRAINER", trainer, "SOLVER.EPOCHS", "2", *detecting(prepared))
    (path,) = [path for path in (prepared / "output").rglob("flags.json") if f"TRAINER:{trainer}" in str(path)]
    assert RunFolder(path.parent).read_flags().epochs == 2


CIFAR = """
EXPERIMENT: {PROJECT: "p", TAG: "t"}
DATASET: {TYPE: "cifar100", NUM_WORKERS: 0, TEST: {BATCH_SIZE: 50}}
DISTILLER: {TEACHER: "resnet20", STUDENT: "resnet8"}
SOLVER: {BATCH_SIZE: 50, EPOCHS: 1, LR: 0.05, TRAINER: "tllm"}
TLLM: {HOLDOUT: {FRACTION: 0.5}, DETECTOR: {TYPE: "fixed", CLASSES: [1, 4]}}
"""


@pytest.mark.parametrize(("kind", "trainer"), [("KD", "base"), ("MLKD", "ours")])
def test_cifar100(scratch: Path, kind: str, trainer: str) -> None:
    if not (scratch / "mdistiller" / "distillers" / f"{kind}.py").exists():
        pytest.skip(f"this checkout has no {kind}")
    make_cifar100(scratch / "data")
    script = scratch / "tools" / "train.py"
    # Ours has not the checksum of the official files.
    patch = "import torchvision.datasets.cifar as cifar; cifar.check_integrity = lambda *given: True\n"
    script.write_text(patch + script.read_text())
    torch.save({"model": create_model("resnet20", num_classes=100).state_dict()}, scratch / "teacher.pth")
    options = ("DISTILLER.TYPE", kind, "TLLM.TRAINER", trainer)
    teacher = ("DISTILLER.TEACHER_CHECKPOINT", str(scratch / "teacher.pth"))
    train(scratch, *options, *teacher, base=CIFAR)
    (path,) = (scratch / "output").rglob("flags.json")
    run = RunFolder(path.parent)
    flags = run.read_flags()
    assert flags.flagged == (1, 4) and flags.num_classes == 100 and flags.classes[4].name == "class 4"
    assert {item.holdout_count for item in flags.classes} == {5}
    assert len(run.read_split().holdout) == 500


def test_a_policy_sets_the_weights(prepared: Path) -> None:
    options = ("DISTILLER.TEACHER_CHECKPOINT", str(prepared / "teacher.pth"), "TLLM.DETECTOR.TYPE", "none")
    train(prepared, *options, "TLLM.POLICY", "equal_strength")
    run = RunFolder(next(path.parent for path in (prepared / "output").rglob("policy.json")))
    record = run.read_policy()
    weights = torch.tensor([item.weight for item in record.classes])
    assert record.temperature == 4.0 and 0 < int((weights < 1).sum()) < record.num_classes
    state = torch.load(run.log_folder / "latest", weights_only=True)["model"]
    assert torch.equal(next(value for key, value in state.items() if key.endswith("teaching_weights")).cpu(), weights)


def test_type_tllm(prepared: Path) -> None:
    named = ("DISTILLER.TYPE", "TLLM", "TLLM.DISTILLER", "AT", "SOLVER.EPOCHS", "1", *detecting(prepared))
    train(prepared, *named)
    done = train(prepared, "DISTILLER.TYPE", "TLLM", "TLLM.DISTILLER", "CRD", *detecting(prepared), check=False)
    assert done.returncode != 0
    assert "keep DISTILLER.TYPE 'CRD' and set SOLVER.TRAINER to 'tllm' instead" in done.stderr
    assert "Traceback" not in done.stderr


def test_all_problems_at_once(scratch: Path) -> None:
    done = train(scratch, "TLLM.DETECTOR.ETA", "2.0", "SOLVER.TRAINER", "tllm", "TLLM.TRAINER", "no", check=False)
    assert done.returncode == 2
    assert "`TLLM.DETECTOR.ETA` to be in (0, 1), but got 2.0" in done.stderr
    assert "`TLLM.TRAINER` to be one of base" in done.stderr
    assert "`TLLM.DETECTOR.REFERENCE` to name the run of a vanilla student" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (scratch / "output").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("TLLM.DETECTOR.ETA", "1"), "Type mismatch"),  # The host's yacs takes no whole number for a fraction.
        (("TLLM.ETA", "0.1"), "TLLM"),
        (("SOLVER.EPOCHS",), "pairs KEY VALUE"),
    ],
)
def test_overrides_that_the_host_refuses(scratch: Path, options: tuple[str, ...], message: str) -> None:
    done = train(scratch, *options, check=False)
    assert done.returncode == 2 and message in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("script", [False, True], ids=["launched", "patched"])
@pytest.mark.parametrize(
    ("base", "told"),
    [
        (f"{BASE}SOLVER: {{LR: 0.1}}\n", "repeats the key `SOLVER` in one mapping, in line 5 and in line 15;"),
        (BASE.replace("EPOCHS: 3", "EPOCHS: 010"), "but got 010, which YAML reads as 8;"),
    ],
    ids=["twice", "octal"],
)
def test_a_config_that_the_host_would_misread_is_refused(base: str, told: str, script: bool, scratch: Path) -> None:
    if script:
        apply_patch(scratch, "0001")
    done = train(scratch, script=script, check=False, base=base)
    assert done.returncode != 0 and told in done.stderr, done.stderr
    assert "Traceback" not in done.stderr and not (scratch / "output").exists()


def test_plugin_that_is_off_changes_nothing(scratch: Path) -> None:
    seeded(scratch)
    for name in ("0001", "0002"):
        apply_patch(scratch, name)
    options = ("DISTILLER.TYPE", "NONE", "DISTILLER.STUDENT", "MobileNetV2", "SOLVER.TRAINER", "base")
    (scratch / "base.yaml").write_text(BASE)
    train(scratch, *options, "SOLVER.EPOCHS", "2", script=True)
    registered = torch.load(next((scratch / "output").rglob("latest")), weights_only=True)
    # The same without a word of TLLM: in the script, in the config.
    script = scratch / "tools" / "train.py"
    lines = script.read_text().splitlines(keepends=True)
    script.write_text("".join(line for line in lines if "tllm" not in line))
    (scratch / "plain.yaml").write_text(BASE[: BASE.index("TLLM:")])
    (scratch / "output").rename(scratch / "first")
    command = [sys.executable, "tools/train.py", "--cfg", "plain.yaml", *options, "SOLVER.EPOCHS", "2"]
    done = subprocess.run(command, cwd=scratch, env=environment(scratch), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert_equal(registered, torch.load(next((scratch / "output").rglob("latest")), weights_only=True))
    logs = [next((scratch / name).rglob("worklog.txt")).read_text() for name in ("first", "output")]
    assert logs[0] == logs[1]


def test_patched_script_finds_our_configs_and_resumes(prepared: Path) -> None:
    for name in ("0001", "0002"):
        apply_patch(prepared, name)
    done = subprocess.run(
        [sys.executable, "tools/train.py", "--cfg", "configs/tllm/nothing.yaml"],
        cwd=prepared,
        env=environment(prepared),
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0 and "there is no such file; configs" in done.stderr
    assert "Traceback" not in done.stderr
    options = (*detecting(prepared), "SOLVER.EPOCHS", "2")
    train(prepared, *options, script=True)
    train(prepared, *options, script=True, resume=True)
