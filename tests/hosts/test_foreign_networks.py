"""Students and teachers of timm and torchvision, from config to run folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.hosts.folder_runs import config
from tests.hosts.small_images import CLASSES, make_images
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.run_spec import RunSpec

timm = pytest.importorskip("timm", reason="the optional extra `timm` is not installed")

KD = ("DISTILLER.TYPE", "KD", "TLLM.DETECTOR.TYPE", "none", "DISTILLER.STUDENT", "timm:test_resnet")
SMALL = ("DATASET.IMAGE_SIZE", "32")


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "images"
    make_images(folder)
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file as timm's train script writes it."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("teacher") / "last.pth.tar"
    network = timm.create_model("test_efficientnet", num_classes=CLASSES)
    torch.save({"arch": "test_efficientnet", "state_dict": network.state_dict()}, path)
    return path


@pytest.mark.parametrize("method", ["KD", "AT"])
def test_a_student_of_timm_learns_from_a_file_of_timm(method: str, images: Path, teacher: Path) -> None:
    named = ("DISTILLER.TEACHER", f"timm:test_efficientnet@{teacher}", "DISTILLER.TYPE", method)
    cfg = config(images, *KD, *SMALL, *named)
    assert ("timm:test_efficientnet", str(teacher)) == (cfg.DISTILLER.TEACHER, cfg.DISTILLER.TEACHER_CHECKPOINT)
    run = recipe.run(cfg, overwrite=True)
    assert run.log_folder.name == f"{method.lower()}-timm-test_resnet-seed0"
    # timm itself takes the weights.
    network = timm.create_model("test_resnet", num_classes=CLASSES)
    network.load_state_dict(torch.load(run.log_folder / "student_latest", weights_only=True)["model"])
    assert RunSpec.read(run).get("DISTILLER.TEACHER_CHECKPOINT") == str(teacher)


def test_a_student_of_torchvision_and_a_teacher_of_timm_that_is_trained_first(images: Path) -> None:
    named = ("DISTILLER.STUDENT", "torchvision:mobilenet_v3_small", "DISTILLER.TEACHER", "timm:test_resnet")
    run = recipe.run(config(images, *KD, *SMALL, *named))
    assert run.read_metrics().finished
    assert list(run.log_folder.parent.glob("teacher-timm-test_resnet-*"))


def test_image_size_and_normalisation_are_the_students(images: Path) -> None:
    expected = timm.data.resolve_model_data_config(timm.create_model("test_vit"))
    words = ["DATASET.TYPE", "imagefolder", "DATASET.PATH", str(images), "DISTILLER.STUDENT", "timm:test_vit"]
    dataset = load_config("tllm/embedded/digits.yaml", words).DATASET
    assert dataset.IMAGE_SIZE == 160
    assert (list(expected["mean"]), list(expected["std"])) == (dataset.MEAN, dataset.STD)
    stated = ["DATASET.IMAGE_SIZE", "96", "DATASET.MEAN", "[0.1, 0.2, 0.3]", "DATASET.STD", "[1.0, 1.0, 1.0]"]
    dataset = load_config("tllm/embedded/digits.yaml", [*words, *stated]).DATASET
    assert (dataset.IMAGE_SIZE, dataset.MEAN) == (96, [0.1, 0.2, 0.3])
    # The digits have a size and a normalisation of their own.
    assert load_config("tllm/embedded/digits.yaml", words[4:]).DATASET.IMAGE_SIZE == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ("DISTILLER.STUDENT", "timm:test_resnt"),
            "a network of timm, but got 'test_resnt'; similar names: test_resnet",
        ),
        (
            ("DISTILLER.TYPE", "AT", "DISTILLER.TEACHER", "timm:test_vit", "DATASET.IMAGE_SIZE", "160"),
            "a network that returns `feats` for this method",
        ),
        (
            ("DISTILLER.TEACHER", "timm:test_vit@a.pt", "DISTILLER.TEACHER_CHECKPOINT", "b.pt"),
            "`DISTILLER.TEACHER_CHECKPOINT` to be empty beside the teacher timm:test_vit@a.pt",
        ),
        (("DISTILLER.TEACHER", "timm:test_vit@/nowhere.pt"), "/nowhere.pt does not exist"),
    ],
)
def test_bad_configs(words: tuple[str, ...], message: str, images: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        config(images, *KD, *SMALL, *words)


def test_weights_of_another_network_are_refused_before_images_are_read(
    images: Path, teacher: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recipe, "load_bundle", lambda cfg: pytest.fail("data were read"))
    with pytest.raises(FileFormatError, match="to fit timm:test_convnext, but"):
        recipe.run(config(images, *KD, *SMALL, "DISTILLER.TEACHER", f"timm:test_convnext@{teacher}"), overwrite=True)
