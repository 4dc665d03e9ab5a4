"""CUB-200-2011 in RepDistiller: its loaders, what does not go with it, and a run of the real host."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torchvision

from tests.data.official_cub200 import make_official
from tests.hosts.repdistiller.conftest import environment
from tests.hosts.repdistiller.processes import LAUNCHER, only_run, python, save_teacher
from tests.hosts.repdistiller.short_runs import parse
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.repdistiller import load_images
from tllm_plugin.models import create_model


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    models: dict[str, Any] = {"resnet8": object}
    monkeypatch.setitem(sys.modules, "models", SimpleNamespace(model_dict=models))  # type: ignore[misc]
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    return models


@pytest.mark.parametrize("kind", ["student", "teacher"])
def test_loaders(tmp_path: Path, kind: str) -> None:
    options = SimpleNamespace(dataset="cub200", data_folder=str(make_official(tmp_path)), batch_size=4, num_workers=0)
    if kind == "student":
        options.distill = "kd"
    train, test, count, classes = load_images(options)
    assert (count, classes) == (9, 3)
    image, target, *index = next(iter(train))
    assert image.shape == (4, 3, 224, 224) and bool(index) == (kind == "student")
    if index:
        assert target.tolist() == [train.dataset.targets[i] for i in index[0].tolist()]
        ((held, label),) = LoaderData(train, test.dataset.transform).holdout_loader(torch.tensor([8, 0]))
        assert label.tolist() == [2, 0] and held.shape == (2, 3, 224, 224)
    assert [batch[1].tolist() for batch in test] == [[0, 1], [2]]


def test_what_does_not_go_with_it(monkeypatch: pytest.MonkeyPatch, models: dict[str, Any], tmp_path: Path) -> None:
    path = save_teacher(tmp_path, torch.nn.Linear(1, 1), "resnet8")
    with pytest.raises(ConfigError) as raised:
        parse(monkeypatch, "--dataset", "cub200", "--path_t", str(path), "--model_s", "resnet8")
    assert str(raised.value).count("for photographs (tv_resnet50, tv_resnet18, tv_mobilenet_v2)") == 2
    with pytest.raises(ConfigError, match="Expected `--pretrained` with one of tv_resnet50, .*, but got resnet8"):
        parse(monkeypatch, "--pretrained", "--model", "resnet8", teacher=True)
    with pytest.raises(ConfigError, match="for the data set cub200, but got resnet8"):
        parse(monkeypatch, "--dataset", "cub200", "--model", "resnet8", teacher=True)


def test_networks_start_pretrained_where_asked_for(monkeypatch: pytest.MonkeyPatch, models: dict[str, Any]) -> None:
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **_: state)
    for given in ((), ("--pretrained",)):
        parse(monkeypatch, "--model", "tv_resnet18", *given, teacher=True)
        network = models["tv_resnet18"](num_classes=3)
        assert torch.equal(network.conv1.weight, state["conv1.weight"]) == bool(given)
    assert network.eval()(torch.randn(1, 3, 64, 64)).shape == (1, 3)


def test_a_run_of_the_real_host(scratch: Path, tmp_path: Path) -> None:
    birds = make_official(tmp_path, per_class=9)
    teacher = save_teacher(tmp_path, create_model("tv_mobilenet_v2", num_classes=3), "tv_mobilenet_v2")
    words = (
        *("--path_t", str(teacher), "--model_s", "tv_mobilenet_v2", "--dataset", "cub200", "--data_folder", str(birds)),
        *("--batch_size", "5", "--num_workers", "0", "--epochs", "1", "--distill", "srrl"),
        *("--tllm", "--tllm_detector", "fixed", "--tllm_classes", "1", "--tllm_holdout", "0.7"),
    )
    python(tmp_path, environment(scratch), *LAUNCHER, *words)
    run = only_run(tmp_path)
    flags = run.read_flags()
    assert [item.name for item in flags.classes if item.flagged] == ["Laysan Albatross"]
    assert run.read_metrics().class_total == (1, 1, 1)
    assert run.log_folder.name.startswith("S:tv_mobilenet_v2_T:tv_mobilenet_v2_cub200_srrl_")
