"""CUB-200-2011 in mdistiller: what its `get_dataset` returns, and a run of the patched script."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from yacs.config import CfgNode

from tests.data.official_cub200 import make_official
from tests.hosts.mdistiller.processes import apply_patch, train
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.models import create_model
from tllm_plugin.runs.run_folder import RunFolder


@pytest.fixture(scope="module")
def official(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_official(tmp_path_factory.mktemp("cub"))


@pytest.fixture
def cfg(imported: Path, official: Path) -> CfgNode:
    from mdistiller.engine.cfg import CFG

    cfg = CFG.clone()
    cfg.DATASET.TYPE, cfg.DATASET.PATH, cfg.DATASET.NUM_WORKERS, cfg.SOLVER.BATCH_SIZE = "cub200", str(official), 0, 4
    return cfg


def test_get_dataset(cfg: CfgNode) -> None:
    from mdistiller.dataset import get_dataset

    train, test, count, classes = get_dataset(cfg)
    assert (count, classes) == (9, 3)
    image, target, index = next(iter(train))
    assert image.shape == (4, 3, 224, 224)
    assert target.tolist() == [train.dataset.targets[i] for i in index.tolist()]
    ((image, target),) = test
    assert image.shape == (3, 3, 224, 224) and target.tolist() == [0, 1, 2]
    data = LoaderData(train, test.dataset.transform)
    assert data.class_names == ("Black footed Albatross", "Laysan Albatross", "Sooty Albatross")
    ((held, label),) = data.holdout_loader(torch.tensor([8, 0]))
    assert label.tolist() == [2, 0]
    assert torch.equal(held[1], test.dataset.transform(_picture(train.dataset.files[0])))
    assert len(data.train_loader(torch.tensor([1, 2, 3])).dataset) == 3


def _picture(file: str) -> Any:
    from PIL import Image

    return Image.open(file).convert("RGB")


def test_other_data_sets_are_the_hosts(cfg: CfgNode) -> None:
    from mdistiller.dataset import get_dataset

    cfg.DATASET.TYPE = "no such"
    with pytest.raises(NotImplementedError):
        get_dataset(cfg)
    cfg.DATASET.TYPE, cfg.DISTILLER.TYPE = "cub200", "CRD"
    with pytest.raises(ConfigError, match="a data set of the host's for CRD"):
        get_dataset(cfg)


def test_networks_are_there_and_pretrained_where_asked_for(cfg: CfgNode, monkeypatch: pytest.MonkeyPatch) -> None:
    import torchvision
    from mdistiller.engine.cfg import CFG
    from mdistiller.models import cifar_model_dict

    state = torchvision.models.resnet18().state_dict()
    weights = torchvision.models.ResNet18_Weights
    monkeypatch.setattr(weights, "get_state_dict", lambda self, **_: state)
    monkeypatch.setitem(CFG.DISTILLER, "STUDENT", "tv_resnet18")
    build = cifar_model_dict["tv_resnet18"][0]
    assert not torch.equal(build(num_classes=3).conv1.weight, state["conv1.weight"])
    monkeypatch.setitem(CFG.DISTILLER, "PRETRAINED", True)
    assert torch.equal(build(num_classes=3).conv1.weight, state["conv1.weight"])


BASE = """
EXPERIMENT: {PROJECT: "p", TAG: "t"}
DATASET: {TYPE: "cub200", NUM_WORKERS: 0, TEST: {BATCH_SIZE: 4}}
DISTILLER: {TYPE: "KD", TEACHER: "tv_mobilenet_v2", STUDENT: "tv_mobilenet_v2"}
SOLVER: {BATCH_SIZE: 5, EPOCHS: 1, LR: 0.05, TRAINER: "tllm"}
TLLM: {HOLDOUT: {FRACTION: 0.7}, DETECTOR: {TYPE: "fixed", CLASSES: [1]}}
"""


def test_the_patched_script_trains_on_it(scratch: Path) -> None:
    """The host's own script imports `get_dataset` before it knows of TLLM."""
    birds = make_official(scratch, per_class=9)
    for number in ("0001", "0002"):
        apply_patch(scratch, number)
    torch.save({"model": create_model("tv_mobilenet_v2", num_classes=3).state_dict()}, scratch / "teacher.pth")
    options = ("DATASET.PATH", str(birds), "DISTILLER.TEACHER_CHECKPOINT", str(scratch / "teacher.pth"))
    train(scratch, *options, script=True, base=BASE)
    (path,) = (scratch / "output").rglob("flags.json")
    run = RunFolder(path.parent)
    flags = run.read_flags()
    assert [item.name for item in flags.classes if item.flagged] == ["Laysan Albatross"]
    # Eight training images of each class: five or six held out, the others trained on.
    assert {item.holdout_count for item in flags.classes} == {len(run.read_split().holdout) // 3}
    assert torch.load(run.log_folder / "latest", weights_only=True)["epoch"] == 1
