"""A network is shown images as it was trained on, whatever lies beside them when it is asked again."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tests.hosts.digits_runs import CONFIG
from tests.hosts.folder_runs import BASE, VANILLA, config
from tests.hosts.small_images import CLASSES, make_images
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.networks import with_predictions
from tllm_plugin.cli import main
from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import predict
from tllm_plugin.data import load_data
from tllm_plugin.hosts import same_data
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.networks import load_teacher, show_as_recorded
from tllm_plugin.models import create_model
from tllm_plugin.runs import data_file
from tllm_plugin.runs.run_folder import RunFolder


@pytest.fixture(autouse=True)
def nothing_told_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(same_data, "_told", set())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    images = tmp_path_factory.mktemp("trained") / "images"
    make_images(images)
    return recipe.run(config(images, *VANILLA, "SOLVER.EPOCHS", "3"))


@pytest.fixture
def run(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run, whose images lie beside it."""
    shutil.copytree(trained.log_folder.parents[2] / "images", tmp_path / "images")
    return RunFolder.inside(shutil.copytree(trained.log_folder, tmp_path / "run"))


def change_what_lies_beside(images: Path) -> None:
    """Make training images that have other statistics, and give the classes other readable names."""
    for path in (images / "train").rglob("*.png"):
        pixels = np.asarray(Image.open(path)) // 3
        Image.fromarray(pixels.astype(np.uint8)).save(path)
    (images / "classes.txt").write_text("n0 zero\nn1 one\n")


def test_the_normalisation_matters(run: RunFolder, tmp_path: Path) -> None:
    """Otherwise the tests below would show nothing."""
    change_what_lies_beside(tmp_path / "images")
    bundle = load_data("imagefolder", str(tmp_path / "images"), image_size=8, num_workers=0)
    network = create_model("digits_student", CLASSES, 3)
    network.load_state_dict(torch.load(run.log_folder / "student_latest", weights_only=True)["model"])
    batches = bundle.eval_loader(None, batch_size=50, device="cpu", split="test")
    assert not predict(network, batches).prediction.equal(run.read_predictions().prediction)


def test_tllm_test(run: RunFolder, tmp_path: Path) -> None:
    kept = run.predictions_npz.read_bytes(), run.metrics_json.read_bytes()
    change_what_lies_beside(tmp_path / "images")
    run.predictions_npz.unlink()
    run.write_metrics(run.read_metrics().without_results())
    assert main(["test", str(run.log_folder), "--path", str(tmp_path / "images")]) == 0
    assert (run.predictions_npz.read_bytes(), run.metrics_json.read_bytes()) == kept


def test_tllm_test_of_renamed_classes(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run.predictions_npz.unlink()
    for part in ("train", "val"):
        (tmp_path / "images" / part / "n0").rename(tmp_path / "images" / part / "z")
    assert main(["test", str(run.log_folder), "--path", str(tmp_path / "images")]) == 2
    assert "class 'n0' is now 'z'" in capsys.readouterr().err


def test_answers(trained: RunFolder, run: RunFolder, tmp_path: Path) -> None:
    kept = run.read_predictions()
    # As somebody does who moves the data: the first line, a digest of the rest, goes.
    config = run.config_yaml.read_text().partition("\n")[2]
    run.config_yaml.write_text(config.replace(str(trained.log_folder.parents[2]), str(tmp_path)))
    run.predictions_npz.unlink()
    change_what_lies_beside(tmp_path / "images")
    (found,) = with_predictions([load_run(run.log_folder)])
    assert found.result.predictions is not None
    assert found.result.predictions.prediction.equal(kept.prediction)
    (tmp_path / "images" / "val" / "n0" / "000.png").unlink()
    (found,) = with_predictions([load_run(run.log_folder)])
    assert found.result.predictions is None


def accuracy(words: list[str], capsys: pytest.CaptureFixture[str]) -> float:
    assert main(["compare", *words, "--json", "-"]) == 0
    value: float = json.loads(capsys.readouterr().out)["vanilla"]["test_accuracy"]["mean"]
    return value


def test_bare_checkpoints(run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = tmp_path / "images"
    reported = run.read_metrics().test_accuracy
    change_what_lies_beside(images)
    other = tmp_path / "other.pth"
    torch.save({"model": create_model("digits_student", CLASSES, 3).state_dict()}, other)
    best = run.log_folder / "student_latest"
    words = [f"digits_student@{best}", f"digits_student@{other}", "--data", f"imagefolder={images}"]
    # Size and normalisation are those of the checkpoint, neither as stored (32 pixels) nor of the images there now.
    assert accuracy(words, capsys) == pytest.approx(reported)
    # A foreign one says nothing: it is told what is taken, and options state it.
    foreign = tmp_path / "foreign.pth"
    state = torch.load(best, weights_only=True)
    recorded = data_file.from_checkpoint(state, best)
    assert recorded is not None
    torch.save({"model": state["model"]}, foreign)
    words[0] = f"digits_student@{foreign}"
    stated = [
        *("--image-size", "8", "--mean", ",".join(map(str, recorded.mean)), "--std", ",".join(map(str, recorded.std))),
    ]
    assert accuracy([*words, *stated], capsys) == pytest.approx(reported)
    assert accuracy([*words, "--image-size", "8"], capsys) != pytest.approx(reported)


def test_what_bare_checkpoints_are_told(
    run: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images = tmp_path / "images"
    known, foreign = run.log_folder / "student_latest", tmp_path / "foreign.pth"
    torch.save({"model": torch.load(known, weights_only=True)["model"]}, foreign)
    data = ("--data", f"imagefolder={images}")

    def told(*words: str, code: int = 0) -> str:
        monkeypatch.setattr(same_data, "_told", set())
        assert main(["compare", *words, *data]) == code
        return " ".join(capsys.readouterr().err.split())

    both = (f"digits_student@{known}", f"digits_student@{foreign}", "--image-size", "8")
    assert told(*both).count("does not record its normalisation") == 1
    text = told(*both, "--mean", "0,0,0", "--std", "1,1,1")
    assert "is tested with other settings than in training: the mean was" in text and "does not record" not in text
    assert "`--mean` and `--std` together" in told(*both, "--mean", "0,0,0", code=2)
    # Class folders whose order is anybody's guess.
    for part in ("train", "val"):
        for label in range(CLASSES):
            (images / part / f"n{label}").rename(images / part / f"{label + 7}")
    assert "class order" in told(*both, code=2), "the checkpoint knows other classes"
    copy = shutil.copy(foreign, tmp_path / "copy.pth")
    guess = (f"digits_student@{copy}", *both[1:])
    assert told(*guess).count("class 0 is '10' in text order and '7' in timm's natural order") == 2, "once for each"
    assert "order" not in told(*guess, "--class-order", "natural")


def test_a_teacher_is_shown_images_as_it_was_trained(
    run: RunFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    images, teacher = tmp_path / "images", tmp_path / "teacher.pth"
    numbers = ("DATASET.MEAN", "[0.1, 0.2, 0.3]", "DATASET.STD", "[0.5, 0.4, 0.3]")
    trained = recipe.run(config(images, *VANILLA, *numbers, "DISTILLER.STUDENT", "digits_teacher"))
    shutil.copy(trained.log_folder / "student_latest", teacher)
    caplog.set_level(logging.WARNING)
    bundles, agreement = [], []
    for name, options in (("same", numbers), ("other", ())):
        taught = ("DISTILLER.TYPE", "KD", "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", name, *options)
        cfg = config(images, *taught, "DISTILLER.TEACHER_CHECKPOINT", str(teacher))
        bundle = load_bundle(cfg)
        network = load_teacher(cfg, teacher, bundle, torch.device("cpu"))
        batches = bundle.eval_loader(None, batch_size=50, device="cpu", split="test")
        with torch.no_grad():
            agreement.append(torch.cat([network(image)[0] for image, _ in batches]))
        bundles.append(bundle.mean)
    assert bundles[0] != bundles[1]
    torch.testing.assert_close(agreement[0], agreement[1], rtol=1e-3, atol=1e-3)
    assert caplog.text.count("was trained on other data: the mean was 0.1, 0.2, 0.3 and is") == 1
    recipe.run(cfg)  # It trains, too.


def test_equal_numbers_change_nothing() -> None:
    seen: list[Tensor] = []

    class Network(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            seen.append(image)
            return image

    now = DataIdentity(mean=(0.5,), std=(0.25,))
    image = torch.rand(2, 1, 3, 3)
    for recorded in (DataIdentity(), now, DataIdentity(mean=(0.5 + 1e-9,), std=(0.25,)), DataIdentity(image_size=3)):
        network = Network()
        show_as_recorded(network, recorded, now)
        assert network(image) is image
    network = Network()
    show_as_recorded(network, DataIdentity(mean=(0.1,), std=(0.5,)), now)
    expected = (image * 0.25 + 0.5 - 0.1) / 0.5
    for given in (network(image), network(image=image)):
        torch.testing.assert_close(given, expected)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("DATASET.MEAN", "[0.5]", "`DATASET.MEAN` and `DATASET.STD` together"),
        ("DATASET.STD", "[0.5, 0]", "`DATASET.STD` to be numbers above 0"),
        ("DATASET.MEAN", "[x]", "`DATASET.MEAN` to be finite numbers"),
        ("DATASET.MEAN", "[true]", "`DATASET.MEAN` to be finite numbers"),
        ("DATASET.CLASS_ORDER", "no such file", "`DATASET.CLASS_ORDER` to be '', 'natural' or a file"),
    ],
)
def test_keys(key: str, value: str, told: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        config(tmp_path, key, value)
    assert told in str(error.value)
    assert load_config(CONFIG, BASE).DATASET.CLASS_ORDER == ""


def test_an_unstated_order_of_a_foreign_teacher(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    images, teacher = tmp_path / "images", tmp_path / "teacher.pth"
    make_images(images)
    for part in ("train", "val"):
        for label in range(CLASSES):
            (images / part / f"n{label}").rename(images / part / f"{label + 7}")
    torch.save({"model": create_model("digits_teacher", CLASSES, 3).state_dict()}, teacher)
    caplog.set_level(logging.WARNING)

    def taught(*options: str) -> Any:
        cfg = config(images, "DISTILLER.TYPE", "KD", "DISTILLER.TEACHER_CHECKPOINT", str(teacher), *options)
        return load_teacher(cfg, teacher, load_bundle(cfg), torch.device("cpu"))

    taught("DATASET.CLASS_ORDER", "natural")
    assert not caplog.text
    taught()
    assert caplog.text.count("does not record the order of its classes") == 1
