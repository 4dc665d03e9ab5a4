"""The ported methods on the host's ImageNet networks, which take images of 224 pixels only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from yacs.config import CfgNode

from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.hosts.method_options import make_branches
from tllm_plugin.models import create_model

PAIRS = [("ResNet34", "ResNet18"), ("ResNet50", "MobileNetV1")]


def config(kind: str, teacher: str, student: str) -> CfgNode:
    from mdistiller.engine.cfg import CFG

    cfg = CFG.clone()
    cfg.DATASET.TYPE = "imagenet"
    cfg.DISTILLER.TYPE, cfg.DISTILLER.TEACHER, cfg.DISTILLER.STUDENT = kind, teacher, student
    return cfg


def networks(*names: str) -> list[Any]:
    from mdistiller.models import imagenet_model_dict

    torch.manual_seed(0)
    return [imagenet_model_dict[name](pretrained=False) for name in names]


@pytest.mark.parametrize(("teacher", "student"), PAIRS)
def test_branches_have_the_shapes_of_the_students_maps(imported: Path, teacher: str, student: str) -> None:
    teacher_network, student_network = networks(teacher, student)
    branches = make_branches(student_network, teacher_network, student)
    assert [branch.stage for branch in branches] == [-4, -3, -2]
    with torch.no_grad():
        _, features = teacher_network.eval()(torch.zeros(1, 3, 224, 224))
        _, wanted = student_network.eval()(torch.zeros(1, 3, 224, 224))
        for branch in branches:
            maps = branch.transform.eval()(features["feats"][branch.stage])
            assert maps.shape == wanted["feats"][branch.stage].shape
            assert branch.eval()(features["feats"]).shape == (1, 1000)


@pytest.mark.parametrize("kind", ["SRRL", "CID"])
def test_methods_are_built(imported: Path, kind: str) -> None:
    from mdistiller.distillers import distiller_dict

    teacher, student = networks("ResNet50", "MobileNetV1")
    distiller = distiller_dict[kind](student, teacher, config(kind, "ResNet50", "MobileNetV1"))
    if kind == "SRRL":
        assert distiller.connector[0].weight.shape == (2048, 1024, 1, 1)
    else:
        assert distiller.regressor.weight.shape == (2048, 1024)
        assert distiller.student.context.shape == (1000, 1024)


@torch.no_grad()
def test_our_mobilenet_is_the_hosts(imported: Path) -> None:
    (theirs,) = networks("MobileNetV1")
    ours = create_model("MobileNetV1", num_classes=1000)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(1, 3, 224, 224)
    (logits, features), (expected, wanted) = ours.eval()(image), theirs.eval()(image)
    torch.testing.assert_close(logits, expected)
    for name in ("feats", "preact_feats"):
        assert len(features[name]) == 1 + len(wanted[name])
        for ours_map, theirs_map in zip(features[name][1:], wanted[name], strict=True):
            torch.testing.assert_close(ours_map, theirs_map)
    torch.testing.assert_close(features["pooled_feat"], wanted["pooled_feat"])


@pytest.fixture
def table(imported: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The host's table of ImageNet networks, put back afterwards; nothing is downloaded."""
    from mdistiller.models import imagenet_model_dict
    from mdistiller.models.imagenet import resnet

    monkeypatch.setattr(resnet.model_zoo, "load_url", lambda url: pytest.fail(f"{url} was asked for"))
    for name, builder in imagenet_model_dict.items():
        monkeypatch.setitem(imagenet_model_dict, name, builder)
    return imagenet_model_dict  # type: ignore[no-any-return]


def test_a_checkpoint_takes_the_place_of_torchvisions_weights(table: dict[str, Any], tmp_path: Path) -> None:
    from tllm_plugin.hosts.mdistiller.teachers import choose_teacher

    checkpoint = tmp_path / "student_latest"
    (trained,) = networks("ResNet18")
    torch.save({"model": trained.state_dict()}, checkpoint)
    cfg = config("KD", "ResNet18", "MobileNetV1")
    cfg.DISTILLER.TEACHER_CHECKPOINT = str(checkpoint)
    choose_teacher(cfg)
    loaded = table["ResNet18"](pretrained=True)
    assert torch.equal(loaded.fc.weight, trained.fc.weight)
    assert not torch.equal(table["ResNet18"](pretrained=False).fc.weight, trained.fc.weight)
    damaged = {**trained.state_dict(), "fc.bias": torch.full((1000,), float("nan"))}
    torch.save({"model": damaged}, checkpoint)
    with pytest.raises(FileFormatError, match="student_latest to hold finite weights, but `fc.bias` has 1000 of 1000"):
        table["ResNet18"](pretrained=True)
    torch.save({"model": {}}, checkpoint)
    with pytest.raises(FileFormatError, match="student_latest to fit ResNet, but it holds no tensor"):
        table["ResNet18"](pretrained=True)
    torch.save([], checkpoint)
    with pytest.raises(FileFormatError, match="to hold a state_dict, alone or under a key, but it holds a list"):
        table["ResNet18"](pretrained=True)


@pytest.mark.parametrize("data", ["imagenet", "cifar100"])
def test_a_damaged_checkpoint_of_the_teacher_is_refused(table: dict[str, Any], tmp_path: Path, data: str) -> None:
    """For small networks the host's script loads it, and PyTorch does not look at its checksums."""
    from tllm_plugin.hosts.mdistiller.teachers import choose_teacher

    checkpoint = tmp_path / "student_latest"
    torch.save({"model": {"weight": torch.arange(1000.0)}}, checkpoint)
    damaged = bytearray(checkpoint.read_bytes())
    damaged[len(damaged) // 2] ^= 1
    checkpoint.write_bytes(damaged)
    cfg = config("KD", "ResNet18" if data == "imagenet" else "resnet56", "MobileNetV1")
    cfg.DATASET.TYPE = data
    cfg.DISTILLER.TEACHER_CHECKPOINT = str(checkpoint)
    with pytest.raises(FileFormatError, match="to be a network's checkpoint, but it is truncated, damaged"):
        choose_teacher(cfg)


def test_the_teacher_stage_starts_from_initial_weights(table: dict[str, Any]) -> None:
    from tllm_plugin.hosts.mdistiller.teachers import choose_teacher

    choose_teacher(config("SFTN", "ResNet18", "MobileNetV1"))
    assert not torch.equal(table["ResNet18"](pretrained=True).fc.weight, table["ResNet18"](pretrained=True).fc.weight)
