"""SRRL, CID and SFTN in the embedded host: whole runs, resume, what their checkpoints are good for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.hosts.conftest import Trained
from tests.hosts.digits_runs import EPOCHS, assert_equal, assert_same_run, interrupt_at, load_latest, make_config, train
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.networks import student_network
from tllm_plugin.analysis.similarity import teacher_checkpoint
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.distillers import distiller_dict
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.hosts.optimizers import spare_from_decay
from tllm_plugin.hosts.weights import load_weights
from tllm_plugin.methods import SFTN, ContextStudent
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.embedded import EmbeddedSearch

CID = ("DISTILLER.TYPE", "CID", "CID.WARMUP_EPOCHS", "1", "CID.LOSS.SAMPLE_WEIGHT", "1.0")
SFTN_STAGE = ("DISTILLER.TYPE", "SFTN", "TLLM.DETECTOR.TYPE", "none")


@pytest.fixture(scope="module")
def cid_run(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return train(tmp_path_factory.mktemp("cid"), *CID, *trained.detecting)


def test_srrl_trains_and_flags(trained: Trained, tmp_path: Path) -> None:
    run = train(tmp_path, "DISTILLER.TYPE", "SRRL", *trained.detecting)
    assert run.read_metrics().finished and run.read_flags().flagged


def test_cid_trains_and_flags(cid_run: RunFolder) -> None:
    assert cid_run.read_metrics().finished and cid_run.read_flags().flagged
    model = load_latest(cid_run)["model"]
    assert model["distiller.student.has_context"] and model["distiller.student.context_epoch"] == EPOCHS
    assert bool(model["distiller.student.context"].any(1).all())


def test_cid_resumes_bit_for_bit(
    cid_run: RunFolder, trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_at(patch, epoch=3, step=4)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *CID, *trained.detecting)
    assert_same_run(cid_run, train(tmp_path, *CID, *trained.detecting, resume=True))


def test_the_context_head_of_cid_is_as_initialised_when_the_first_context_appears(
    trained: Trained, tmp_path: Path
) -> None:
    options = ("CID.WARMUP_EPOCHS", "2", "LOG.SAVE_CHECKPOINT_FREQ", "1")
    run = train(tmp_path, *CID, *trained.detecting, *options)
    states = [torch.load(run.log_folder / f"epoch_{epoch}", weights_only=True) for epoch in (1, 2, 3)]
    heads = [state["model"]["distiller.student.context_head.weight"] for state in states]
    assert torch.equal(heads[0], heads[1]) and not torch.equal(heads[1], heads[2])
    learnable = sum(len(group["params"]) for group in states[0]["optimizer"]["param_groups"])
    assert [learnable - len(state["optimizer"]["state"]) for state in states] == [2, 2, 0]


def test_metrics_and_checkpoints_of_cid_are_of_the_head_that_predicts(cid_run: RunFolder) -> None:
    bundle = load_bundle(make_config("unused"))
    for path in (cid_run.log_folder / "student_latest", cid_run.student_best_holdout):
        student = load_weights(create_model("digits_student", 10, 1), path).eval()
        assert isinstance(student, ContextStudent)
        with pytest.raises(RuntimeError, match="context_head"):
            create_model("digits_student", 10, 1).load_state_dict(torch.load(path, weights_only=True)["model"])
    student = load_weights(create_model("digits_student", 10, 1), cid_run.log_folder / "student_latest").eval()
    right = {True: 0, False: 0}
    with torch.no_grad():
        for image, label in bundle.eval_loader(None, batch_size=500, device="cpu", split="test"):
            for plain in (True, False):
                logits = (student.network if plain else student)(image)[0]  # type: ignore[operator]
                right[plain] += int((logits.argmax(1) == label).sum())
    assert right[False] == sum(cid_run.read_metrics().class_correct) != right[True]


def test_a_student_of_cid_can_teach(cid_run: RunFolder, tmp_path: Path) -> None:
    named = ("DISTILLER.TEACHER", "digits_student", "DISTILLER.TEACHER_CHECKPOINT")
    run = train(
        *(tmp_path, *named, str(cid_run.log_folder / "student_latest"), "TLLM.DETECTOR.TYPE", "none"),
        *("SOLVER.EPOCHS", "1"),
    )
    model = load_latest(run)["model"]
    path = cid_run.log_folder / "student_latest"
    taught_by = torch.load(path, map_location="cpu", weights_only=True)["model"]
    for key, value in taught_by.items():
        assert torch.equal(model[f"distiller.teacher.{key}"], value), key


def test_weights_of_another_network_are_refused(cid_run: RunFolder) -> None:
    with pytest.raises(FileFormatError, match="Expected .*student_latest to fit TinyConvNet"):
        load_weights(create_model("digits_teacher", 10, 1), cid_run.log_folder / "student_latest")


def test_the_regressor_of_cid_has_no_weight_decay() -> None:
    cfg = make_config("unused", *CID, "SOLVER.WEIGHT_DECAY", "0.1")
    student, teacher = (create_model(name, 10, 1) for name in ("digits_student", "digits_teacher"))
    distiller: Any = distiller_dict["CID"](student, teacher, cfg)
    optimizer = BaseTrainer.init_optimizer(type("Trainer", (), {"distiller": distiller})(), cfg)  # type: ignore[arg-type]
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    spared = {id(p) for p in distiller.regressor.parameters()}
    assert decay == {id(p): 0.0 if id(p) in spared else 0.1 for p in distiller.get_learnable_parameters()}
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]


def test_other_distillers_keep_one_group() -> None:
    network = create_model("digits_student", 10, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, weight_decay=0.1)
    spare_from_decay(optimizer, network)
    assert len(optimizer.param_groups) == 1


def test_sftn_makes_an_ordinary_teacher_checkpoint(trained: Trained, tmp_path: Path) -> None:
    stage = train(tmp_path, *SFTN_STAGE)
    assert stage.log_folder.name == "sftn-digits_teacher-for-digits_student-seed0"
    checkpoint = stage.log_folder / "student_latest"
    saved, vanilla = (
        torch.load(path, map_location="cpu", weights_only=True) for path in (checkpoint, trained.checkpoint)
    )
    assert saved.keys() == vanilla.keys() and saved["model"].keys() == vanilla["model"].keys()
    assert not torch.equal(saved["model"]["conv1.weight"], vanilla["model"]["conv1.weight"])
    run = train(tmp_path, "DISTILLER.TEACHER_CHECKPOINT", str(checkpoint), "TLLM.DETECTOR.TYPE", "none")
    taught_by = {key.removeprefix("distiller.teacher."): v for key, v in load_latest(run)["model"].items()}
    assert all(torch.equal(taught_by[key], value) for key, value in saved["model"].items())
    # What is tested and scored on the hold-out is the teacher, not a branch.
    assert stage.read_metrics().test_accuracy > 0.5
    assert len(stage.read_split().holdout) == len(run.read_split().holdout)


def test_sftn_starts_from_the_weights_of_a_vanilla_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same seed gives the same initial teacher, so that the stage is all that differs."""
    started = []

    def stop(self: BaseTrainer, resume: bool = False) -> None:
        inner = self.distiller.distiller  # type: ignore[union-attr]
        started.append({key: v.clone() for key, v in inner.student.state_dict().items()})  # type: ignore[union-attr]
        assert isinstance(inner, SFTN) == (len(started) == 1)
        raise KeyboardInterrupt

    monkeypatch.setattr(BaseTrainer, "train", stop)
    vanilla = ("DISTILLER.TYPE", "NONE", "DISTILLER.STUDENT", "digits_teacher", "TLLM.DETECTOR.TYPE", "none")
    for options in (SFTN_STAGE, vanilla):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, *options)
    assert all(torch.equal(value, started[1][key]) for key, value in started[0].items())


def test_a_teacher_of_sftn_is_trained_first_where_the_config_asks_for_it(tmp_path: Path) -> None:
    options = ("DISTILLER.TEACHER_STAGE", "SFTN", "TLLM.DETECTOR.TYPE", "none", "SOLVER.EPOCHS", "1")
    run = train(tmp_path, *options)
    (stage,) = run.log_folder.parent.glob("sftn-digits_teacher-*")
    assert teacher_checkpoint(load_run(run.log_folder)) == stage / "student_latest"
    assert "TYPE: SFTN" in RunFolder.inside(stage).config_yaml.read_text()
    before = (stage / "latest").stat().st_mtime_ns
    train(tmp_path, *options, "EXPERIMENT.NAME", "again")
    assert (stage / "latest").stat().st_mtime_ns == before, "it is reused"
    train(tmp_path, *options, "EXPERIMENT.NAME", "other", "SFTN.LOSS.KL_WEIGHT", "1.0")
    assert len(list(run.log_folder.parent.glob("sftn-digits_teacher-*"))) == 2
    # A search has the same teacher, and trains no other.
    taught = EmbeddedSearch(make_config(tmp_path, *options), ()).prepare().taught
    assert len(list(run.log_folder.parent.glob("sftn-digits_teacher-*"))) == 3
    assert not list(run.log_folder.parent.glob("teacher-*"))
    # A report finds it, though the search has a folder of its own; and knows that what it trained is the teacher.
    assert taught is not None and main(["test", str(taught.log_folder)]) == 0
    found = teacher_checkpoint(load_run(taught.log_folder))
    assert found is not None and found.parent.name.startswith("sftn-") and found.parent != stage
    bundle = load_bundle(make_config(tmp_path))
    network = student_network(load_run(stage), bundle, torch.device("cpu"))
    assert_equal(dict(network.state_dict()), dict(torch.load(stage / "student_latest", weights_only=True)["model"]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("DISTILLER.TYPE", "SFTN"), "`TLLM.DETECTOR.TYPE` to be none for DISTILLER.TYPE SFTN"),
        (("TLLM.DISTILLER", "SFTN"), "`TLLM.DISTILLER` to be one of AT, CID, FITNET, KD, SRRL, but got 'SFTN'"),
        (("CID.WARMUP_EPOCHS", "0"), "`CID.WARMUP_EPOCHS` to be at least 1, but got 0"),
        (("SRRL.LOSS.FEAT_WEIGHT", "-1"), "`SRRL.LOSS.FEAT_WEIGHT` to be at least 0, but got -1"),
        (("DISTILLER.TEACHER_STAGE", "CID"), "`DISTILLER.TEACHER_STAGE` to be one of "),
    ],
)
def test_bad_configs(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config("unused", *options)


def test_srrl_of_a_planted_teacher_finds_its_head(trained: Trained, tmp_path: Path) -> None:
    options = ("DISTILLER.TYPE", "SRRL", "DISTILLER.PLANT.CLASSES", "[3]", "TLLM.DETECTOR.TYPE", "none")
    assert train(tmp_path, *options, *trained.taught, "SOLVER.EPOCHS", "1").read_metrics().finished
