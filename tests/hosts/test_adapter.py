"""The trainer `tllm` around the embedded host: what is trained on, what is flagged, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import EPOCHS, HOLDOUT_FRACTION, assert_equal, load_latest, make_config, train
from tllm_plugin.core.errors import ConfigError, FileFormatError, NonFiniteLossError
from tllm_plugin.core.holdout import split
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.data import load_data
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.data import EmbeddedData
from tllm_plugin.hosts.embedded.prerequisites import log_folder
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.methods import KD
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder

NONE = ("TLLM.DETECTOR.TYPE", "none")


@pytest.fixture
def rows_trained_on(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[list[int]]]:
    """Record the training rows of every step."""
    original, rows = BaseTrainer.train_iter, []

    def train_iter(self: BaseTrainer, image: Tensor, target: Tensor, index: Tensor, epoch: int) -> Any:
        rows.append(index.tolist())
        return original(self, image, target, index, epoch)

    monkeypatch.setattr(BaseTrainer, "train_iter", train_iter)
    yield rows


def student_weights(run: RunFolder) -> dict[str, Tensor]:
    weights: dict[str, Tensor] = torch.load(run.log_folder / "student_latest", weights_only=True)["model"]
    return weights


def test_holdout_is_never_trained_on(rows_trained_on: list[list[int]], trained: Trained, tmp_path: Path) -> None:
    run = train(tmp_path, *trained.detecting, "TLLM.HOLDOUT.SEARCH_FRACTION", "0.1")
    record = run.read_split()
    labels = load_data("digits").train_labels
    held_out = {*record.holdout, *record.search_holdout}
    seen = [row for rows in rows_trained_on for row in rows]
    assert len(record.holdout) == 180 and len(record.search_holdout) == 100
    assert torch.bincount(labels[list(record.holdout)]).tolist() == [18] * 10
    assert set(seen) == set(range(len(labels))) - held_out
    assert len(seen) == EPOCHS * len(set(seen)), "every other row once an epoch"


def test_inner_distiller_by_name_is_the_same_run(trained: Trained, tmp_path: Path) -> None:
    kept = train(tmp_path / "a", *trained.detecting)
    named = train(tmp_path / "b", *trained.detecting, "DISTILLER.TYPE", "TLLM", "TLLM.DISTILLER", "KD")
    states = [load_latest(run) for run in (kept, named)]
    for key in ("model", "optimizer", "schedule", "rng"):
        assert_equal(states[0][key], states[1][key])
    assert kept.flags_json.read_bytes() == named.flags_json.read_bytes()
    assert kept.read_flags().flagged


def test_inner_distiller_that_the_host_treats_by_name(tmp_path: Path) -> None:
    cfg = make_config(tmp_path).clone()
    cfg.defrost()
    cfg.TLLM.DISTILLER = "NONE"
    with pytest.raises(ConfigError, match="`TLLM.DISTILLER` to be a type that the host does not treat by name"):
        recipe.distiller_dict["TLLM"](None, None, cfg)
    cfg.TLLM.DISTILLER, cfg.SOLVER.TRAINER = "KD", "base"
    with pytest.raises(ConfigError, match="`SOLVER.TRAINER` to be 'tllm' for DISTILLER.TYPE 'TLLM', but got 'base'"):
        recipe.distiller_dict["TLLM"](None, None, cfg)


def test_detector_none_is_the_hosts_own_trainer(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = train(tmp_path / "tllm", *trained.taught, *NONE)
    rows = split(load_data("digits").train_labels, HOLDOUT_FRACTION, seed=0).train
    original = EmbeddedData.train_loader
    # The host's trainer has no hold-out: give it the rows that ours trained on.
    monkeypatch.setattr(EmbeddedData, "train_loader", lambda self, indices: original(self, rows))
    theirs = train(tmp_path / "base", *trained.taught, "SOLVER.TRAINER", "base")
    assert_equal(student_weights(ours), student_weights(theirs))
    for key in ("optimizer", "schedule", "rng"):
        assert_equal(load_latest(ours)[key], load_latest(theirs)[key])
    assert ours.read_metrics().class_correct == theirs.read_metrics().class_correct
    assert not ours.read_flags().flagged and ours.read_flags().reason == "the detector `none` never flags a class"
    assert not theirs.flags_json.exists()


def test_detector_all_never_asks_the_teacher(trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses_asked = []
    original = KD.losses

    def asked(self: KD, **batch: Any) -> Any:
        # Calls end with the student's, and never come to this.
        result = original(self, **batch)
        # A config is tried out without data before anything is trained.
        if batch["image"].device.type != "meta":
            losses_asked.append(result)
        return result

    monkeypatch.setattr(KD, "losses", asked)
    run = train(tmp_path, *trained.taught, "TLLM.DETECTOR.TYPE", "all")
    flags = run.read_flags()
    assert losses_asked == []
    assert flags.flagged == tuple(range(10))
    assert {item.epoch_flagged for item in flags.classes} == {0}


def test_detector_all_equals_a_vanilla_student_with_label_smoothing(trained: Trained, tmp_path: Path) -> None:
    taught = train(tmp_path / "a", *trained.taught, "TLLM.DETECTOR.TYPE", "all")
    untaught = train(tmp_path / "b", "DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "all")
    assert_equal(student_weights(taught), student_weights(untaught))


@pytest.mark.parametrize(("fraction", "last_taught"), [("0.34", 1), ("0.7", 2), ("0.0", 0)])
def test_detector_after(
    fraction: str, last_taught: int, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    taught_epochs, smoothings = set(), set()
    original = KD.losses

    def losses(self: KD, image: Tensor, target: Tensor, **batch: Any) -> Any:
        # A call that ends with the student's asks no teacher, and goes no further.
        result = original(self, image, target, **batch)
        if image.device.type != "meta":  # A config is tried out without data before anything is trained.
            taught_epochs.add(batch["epoch"])
        return result

    created = TLLMWrapper.__init__

    def init(self: TLLMWrapper, *positional: Any, **options: Any) -> None:
        smoothings.add(options["label_smoothing"])
        created(self, *positional, **options)

    monkeypatch.setattr(KD, "losses", losses)
    monkeypatch.setattr(TLLMWrapper, "__init__", init)
    options = ("TLLM.DETECTOR.TYPE", "after", "TLLM.DETECTOR.AFTER_FRACTION", fraction)
    flags = train(tmp_path, *trained.taught, *options).read_flags()
    assert taught_epochs == set(range(1, last_taught + 1))
    assert {item.epoch_flagged for item in flags.classes} == {last_taught}
    assert smoothings == {0.0}, "early-stopped KD goes on with plain cross-entropy"


def test_detector_fixed(trained: Trained, tmp_path: Path) -> None:
    def flagged(name: str, classes: str) -> tuple[RunFolder, tuple[int, ...]]:
        fixed = ("TLLM.DETECTOR.TYPE", "fixed", "TLLM.DETECTOR.CLASSES", classes, "SOLVER.EPOCHS", "1")
        run = train(tmp_path / name, *trained.taught, *fixed)
        return run, run.read_flags().flagged

    assert flagged("names", "['3', '8']")[1] == (3, 8)
    assert flagged("indices", "[8, 3]")[1] == (3, 8)
    run, _ = flagged("both", "[1, '7']")
    assert flagged("file", f"['{run.flags_json}']")[1] == (1, 7)
    for wrong in ("['cat']", "[10]", "[-1]", "[true]", "[3, 8, 3]", "[3, '3']"):
        with pytest.raises(ConfigError, match="Expected `TLLM.DETECTOR.CLASSES` to "):
            flagged("wrong", wrong)
    with pytest.raises(FileFormatError, match="there is no such file"):
        flagged("missing", "['missing.json']")
    (tmp_path / "foreign.json").write_text("{}")
    with pytest.raises(FileFormatError, match="to be a TLLM flags file"):
        flagged("foreign", f"['{tmp_path / 'foreign.json'}']")


def test_reference_of_another_holdout(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="to be recorded on the same hold-out, but its samples differ: use the same"):
        train(tmp_path, *trained.detecting, "TLLM.HOLDOUT.SEED", "1")


def test_reference_that_is_too_short(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="to have recorded all 4 epochs, but epoch 4 is missing"):
        train(tmp_path, *trained.detecting, "SOLVER.EPOCHS", "4")


def test_reference_that_is_no_run(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="to be a run, but it holds none of split.json, curves.npz"):
        train(tmp_path, *trained.detecting, "TLLM.DETECTOR.REFERENCE", str(tmp_path))


def test_reference_by_the_name_of_its_file(trained: Trained, tmp_path: Path) -> None:
    # Beside it lies a `curves.npz` that is none: only the file that was named may be read.
    odd = tmp_path / "odd.npz"
    odd.write_bytes(trained.vanilla.curves_npz.read_bytes())
    (tmp_path / "curves.npz").write_bytes(b"")
    run = train(tmp_path, *trained.detecting, "TLLM.DETECTOR.REFERENCE", str(odd))
    assert run.read_flags().flagged


@pytest.mark.parametrize("method", ["AT", "FITNET"])
def test_losses_of_features_do_not_drown_the_others_on_digits(method: str, tmp_path: Path) -> None:
    options = ("DISTILLER.TYPE", method, "SOLVER.EPOCHS", "8", "TLLM.DETECTOR.TYPE", "none")
    assert (train(tmp_path, *options).read_metrics().test_accuracy or 0.0) > 0.75  # Ten classes.


def test_agreement_needs_a_teacher(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Expected a teacher for `TLLM.DETECTOR.SCORE` agreement"):
        falling = ("TLLM.DETECTOR.TYPE", "teaching_curve", "TLLM.DETECTOR.SCORE", "agreement")
        train(tmp_path, *trained.detecting, "DISTILLER.TYPE", "NONE", *falling)
    with pytest.raises(ConfigError, match="one that a vanilla run has, too, for `reference`"):
        train(tmp_path, *trained.detecting, "TLLM.DETECTOR.SCORE", "agreement")


def test_imitation_needs_a_teacher(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a teacher for `TLLM.DETECTOR.TYPE` imitation"):
        train(tmp_path, "DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "imitation")


def test_missing_prerequisites_are_trained_once(tmp_path: Path) -> None:
    train(tmp_path, "SOLVER.EPOCHS", "1")
    runs = {path.name for path in (tmp_path / "digits").iterdir()}
    assert sorted(name.split("-")[0] for name in runs) == ["kd", "teacher", "vanilla"]
    times = {path: path.stat().st_mtime_ns for path in tmp_path.glob("digits/[tv]*/latest")}
    train(tmp_path, "SOLVER.EPOCHS", "1", "DISTILLER.TYPE", "AT")
    assert {path.name for path in (tmp_path / "digits").iterdir()} == {*runs, "at-digits_student-seed0"}
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("digits/[tv]*/latest")} == times


def other_teacher(kind: str, trained: Trained, folder: Path) -> Path:
    path = folder / "teacher"
    if kind == "truncated":
        path.write_bytes(trained.checkpoint.read_bytes()[:-500])
    elif kind == "text":
        path.write_text("weights")
    elif kind == "pickle":
        torch.save({"model": Path("x")}, path)
    elif kind == "no model":
        torch.save({"state": {}}, path)
    elif kind == "architecture":
        torch.save({"model": create_model("resnet8", num_classes=10, in_channels=1).state_dict()}, path)
    elif kind == "classes":
        torch.save({"model": create_model("digits_teacher", num_classes=7, in_channels=1).state_dict()}, path)
    return path


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("truncated", "to be a network's checkpoint, but it is truncated, damaged or something else"),
        ("text", "to be a network's checkpoint, but it is"),
        ("pickle", "but it is damaged or holds more than tensors and plain values, which is refused"),
        ("no model", "to fit digits_teacher, but it holds no tensor under any name"),
        ("architecture", r"to fit digits_teacher, but .*tensors are missing \(`.*are left over \(`"),
        ("classes", r"to fit TinyConvNet, but .*`fc.weight` is \(7, 48\) there and \(10, 48\) in the network"),
    ],
)
def test_teacher_that_does_not_fit(kind: str, message: str, trained: Trained, tmp_path: Path) -> None:
    path = other_teacher(kind, trained, tmp_path)
    with pytest.raises(FileFormatError, match=message) as caught:
        train(tmp_path, *NONE, "DISTILLER.TEACHER_CHECKPOINT", str(path))
    assert str(path) in str(caught.value)


def test_teacher_that_vanished(trained: Trained, tmp_path: Path) -> None:
    path = tmp_path / "teacher"
    path.write_bytes(trained.checkpoint.read_bytes())
    cfg = make_config(tmp_path, *NONE, "DISTILLER.TEACHER_CHECKPOINT", str(path))
    path.unlink()
    with pytest.raises(FileFormatError, match="to be a network's checkpoint, but there is no such file"):
        recipe.run(cfg)


@pytest.mark.parametrize("detector", ["none", "all"])
def test_loss_that_is_not_finite(
    detector: str, rows_trained_on: list[list[int]], trained: Trained, tmp_path: Path
) -> None:
    # The first epoch is fine; then the learning rate becomes 5e28.
    explosive = ("SOLVER.SCHEDULE", "step", "SOLVER.LR_DECAY_STAGES", "[1]", "SOLVER.LR_DECAY_RATE", "1e30")
    options = (*trained.taught, "TLLM.DETECTOR.TYPE", detector, "SOLVER.LR", "0.05", *explosive)
    with pytest.raises(NonFiniteLossError) as caught:
        train(tmp_path, *options)
    message = str(caught.value)
    assert message.startswith("Expected finite losses, but got loss_ce = ") and "loss_kd = " in message
    found = re.search(
        r"in epoch 2, step (\d+) of this process, on training rows (.*) and 56 more; try a lower", message
    )
    assert found is not None
    step, made = int(found[1]), len(rows_trained_on)
    # A GPU is not waited for in every step.
    assert step == made or (torch.cuda.is_available() and step <= made < step + 20)
    assert found[2] == ", ".join(map(str, rows_trained_on[step - 1][:8]))
    run = RunFolder.inside(log_folder(make_config(tmp_path, *options)))
    state = load_latest(run)
    assert state["epoch"] == 1
    assert all(torch.isfinite(value).all() for value in student_weights(run).values())
    assert run.read_metrics().epochs_done == 1 and not run.read_metrics().finished


def test_trainer_that_the_host_lacks(trained: Trained, tmp_path: Path) -> None:
    cfg = make_config(tmp_path, *trained.detecting).clone()
    cfg.defrost()
    cfg.TLLM.TRAINER = "crd"
    with pytest.raises(ConfigError, match="Expected `TLLM.TRAINER` to be one of base, but got 'crd'"):
        recipe.run(cfg)


def test_device_that_is_not_there(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="`RUNTIME.DEVICE` to be a device of this machine, but got 'cuda:99'"):
        train(tmp_path, *trained.detecting, "RUNTIME.DEVICE", "cuda:99")
