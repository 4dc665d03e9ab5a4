"""CUB-200-2011's setting in small: torchvision's networks, its weights where the config asks for them, a few birds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision

from tests.data.official_cub200 import make_official
from tests.hosts.digits_runs import load_latest
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config

CONFIG = Path(__file__).resolve().parents[2] / "configs/tllm/embedded/cub200_res50_res18.yaml"


def test_a_run_of_table_10_in_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = torchvision.models.resnet18().state_dict()
    asked: list[Any] = []
    monkeypatch.setattr(
        torchvision.models.ResNet18_Weights, "get_state_dict", lambda self, **_: asked.append(self) or state
    )
    small = ("DATASET.IMAGE_SIZE", "72", "DATASET.NUM_WORKERS", "0", "SOLVER.EPOCHS", "1", "SOLVER.BATCH_SIZE", "3")
    # Without the hold-out, for which there are too few birds.
    plain = ("SOLVER.TRAINER", "base", "SOLVER.LR", "1e-9", "DISTILLER.TEACHER", "tv_resnet18")
    cfg = load_config(
        CONFIG, ["DATASET.PATH", str(make_official(tmp_path)), "LOG.PREFIX", str(tmp_path), *small, *plain]
    )
    run = recipe.run(cfg)
    assert asked == [torchvision.models.ResNet18_Weights.IMAGENET1K_V1] * 2, "of the teacher's run and of the student's"
    model = load_latest(run)["model"]
    for network in ("student", "teacher"):
        torch.testing.assert_close(model[f"{network}.layer1.0.conv1.weight"], state["layer1.0.conv1.weight"])
        assert model[f"{network}.fc.weight"].shape == (3, 512)
    assert run.read_metrics().class_total == (1, 1, 1)


def test_a_model_without_weights_of_torchvisions() -> None:
    with pytest.raises(ConfigError, match=r"\(tv_...\) to train with DISTILLER.PRETRAINED, but got 'resnet8'"):
        load_config(CONFIG, ["DISTILLER.STUDENT", "resnet8"])
