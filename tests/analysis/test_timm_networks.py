"""Vision transformers of timm with random weights, on generated images."""

from __future__ import annotations

import builtins
import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tllm_plugin.analysis.timm_networks import score_timm
from tllm_plugin.cli import main
from tllm_plugin.core.errors import ConfigError, FileFormatError

timm = pytest.importorskip("timm", reason="the optional extra `timm` is not installed")

CLASSES, PER_CLASS = 3, 5
NAME = "test_vit"  # timm's own tiny vision transformer, 160 x 160.


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        (root / "val" / f"n{label}").mkdir(parents=True)
        for number in range(PER_CLASS):
            pixels = generator.integers(0, 256, size=(40, 50, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "val" / f"n{label}" / f"{number}.png")
    (root / "classes.txt").write_text("n0\tEnglish setter\nn1\tweasel\nn2\tmaillot\n")
    return root


def save_weights(path: Path, seed: int, key: str = "model", prefix: str = "") -> torch.nn.Module:
    torch.manual_seed(seed)
    network = timm.create_model(NAME, num_classes=CLASSES)
    with torch.no_grad():
        network.head.weight.normal_()  # timm starts heads near zero: all answers would be the same.
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    torch.save({key: state} if key else state, path)
    return network.eval()


@pytest.mark.parametrize("key, prefix", [("model", ""), ("state_dict", "module."), ("", "")])
def test_answers_are_those_of_the_model(key: str, prefix: str, folder: Path, tmp_path: Path) -> None:
    network = save_weights(tmp_path / "weights.pt", 0, key, prefix)
    found = score_timm(f"timm:{NAME}@{tmp_path / 'weights.pt'}", f"imagefolder={folder}", workers=0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    files = [folder / "val" / f"n{label}" / f"{n}.png" for label in range(CLASSES) for n in range(PER_CLASS)]
    with torch.no_grad():
        expected = network(torch.stack([transform(Image.open(file)) for file in files])).argmax(1).numpy()
    predictions = found.result.predictions
    assert predictions is not None
    np.testing.assert_array_equal(predictions.prediction, expected)
    np.testing.assert_array_equal(predictions.labels, np.repeat(np.arange(CLASSES), PER_CLASS))
    assert found.class_names == ("English setter", "weasel", "maillot")


def test_weights_that_are_not_finite_are_named(folder: Path, tmp_path: Path) -> None:
    network = save_weights(tmp_path / "weights.pt", 0)
    with torch.no_grad():
        network.head.weight[0, 0] = float("inf")
    torch.save({"model": network.state_dict()}, tmp_path / "weights.pt")
    with pytest.raises(FileFormatError, match=r"weights\.pt to hold finite weights, but `head\.weight` has 1 of"):
        score_timm(f"timm:{NAME}@{tmp_path / 'weights.pt'}", f"imagefolder={folder}", workers=0)


def test_several_students_in_one_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = []
    for seed in range(4):
        save_weights(tmp_path / f"{seed}.pt", seed)
        names.append(f"timm:{NAME}@{tmp_path / f'{seed}.pt'}")
    words = ["compare", *names, "--pairs", "--data", f"imagefolder={folder / 'val'}", "--json", "-"]
    assert main(words) == 0
    content = json.loads(capsys.readouterr().out)
    assert [method["vanilla"] for method in content["methods"]] == [[names[0]], [names[2]]]
    assert all(method["vanilla_accuracy"]["n"] == 1 for method in content["methods"])
    assert content["vanilla"]["test_accuracy"] is None and content["num_classes"] == CLASSES
    hurt = [
        {record["class"] for record in content["classes"][place * CLASSES :][:CLASSES] if record["delta_acc"] < 0}
        for place in range(2)
    ]
    assert set(content["hurt_in_every_method"]["classes"]) == hurt[0] & hurt[1]
    assert main(words[:-2]) == 0
    assert "delta acc < 0 in every one of the 2" in " ".join(capsys.readouterr().out.split())
    assert main([*words[:2], *words[3:]]) == 2
    assert "a vanilla and a distilled student each, but got 3 names" in capsys.readouterr().err


TINY = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2}


@pytest.fixture(scope="module")
def tiny() -> tuple[str, str]:
    """Register a tiny transformer, and one with two heads as DeiT's distilled students have."""
    from timm.models import register_model
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    def small(kind: Any, num_classes: int) -> torch.nn.Module:
        network: torch.nn.Module = kind(num_classes=num_classes, **TINY)
        network.pretrained_cfg = {"input_size": (3, 32, 32)}  # type: ignore[assignment]
        return network

    @register_model
    def tllm_one_head(pretrained: bool = False, num_classes: int = 1000, **options: Any) -> torch.nn.Module:
        return small(VisionTransformer, num_classes)

    @register_model
    def tllm_two_heads(pretrained: bool = False, num_classes: int = 1000, **options: Any) -> torch.nn.Module:
        return small(VisionTransformerDistilled, num_classes)

    return "tllm_one_head", "tllm_two_heads"


def save_tiny(path: Path, name: str, seed: int, favourite: int | None = None) -> torch.nn.Module:
    torch.manual_seed(seed)
    network = timm.create_model(name, num_classes=CLASSES)
    with torch.no_grad():
        for weight in network.parameters():
            if weight.dim() > 1:
                weight.normal_()
        if favourite is not None:
            network.head.bias[favourite] = 100.0
    torch.save({"model": network.state_dict()}, path)
    return network.eval()


def test_two_heads_answer_by_their_mean(tiny: tuple[str, str], folder: Path, tmp_path: Path) -> None:
    network = save_tiny(tmp_path / "weights.pt", tiny[1], 0)
    found = score_timm(f"timm:{tiny[1]}@{tmp_path / 'weights.pt'}", f"imagefolder={folder}", workers=0)
    transform = timm.data.create_transform(**timm.data.resolve_model_data_config(network), is_training=False)
    files = [folder / "val" / f"n{label}" / f"{n}.png" for label in range(CLASSES) for n in range(PER_CLASS)]
    with torch.no_grad():
        tokens = network.forward_features(torch.stack([transform(Image.open(file)) for file in files]))
        heads = network.head(tokens[:, 0]), network.head_dist(tokens[:, 1])
    assert not heads[0].argmax(1).equal(heads[1].argmax(1))
    assert found.result.predictions is not None
    assert found.result.predictions.prediction.equal((heads[0] + heads[1]).argmax(1))


def test_the_command_of_table_7(tiny: tuple[str, str], folder: Path, tmp_path: Path) -> None:
    """The command that the index of configs prints, with tiny networks in the places of the paper's."""
    index = (Path(__file__).parents[2] / "configs" / "tllm" / "README.md").read_text(encoding="utf-8")
    told = re.search(r"^tllm compare --pairs.*?(?=^```)", index, re.MULTILINE | re.DOTALL)
    assert told is not None
    words = shlex.split(told.group().replace("\\\n", " "))[1:]
    models = [word.removeprefix("timm:") for word in words if word.startswith("timm:")]
    assert len(models) == 8 and all(timm.is_model(model) for model in models)
    assert [model.replace("_distilled", "") for model in models[1::2]] == models[::2] and models[0] != models[1]

    accuracies = []
    for place, model in enumerate(models):
        path = tmp_path / f"{place}.pt"
        # The vanilla students always answer class 0, so that there is a class that every other student loses.
        save_tiny(path, tiny[place % 2], place, favourite=None if place % 2 else 0)
        name = f"timm:{tiny[place % 2]}@{path}"
        accuracies.append(score_timm(name, f"imagefolder={folder}", workers=0).result.class_accuracy)
        words[words.index(f"timm:{model}")] = name
    deltas = [distilled - vanilla for vanilla, distilled in zip(accuracies[::2], accuracies[1::2], strict=True)]
    words[words.index("imagefolder=/path/to/imagenet/val")] = f"imagefolder={folder / 'val'}"
    words[words.index("table7.md")] = str(tmp_path / "table7.md")
    assert main(words) == 0
    lost = [c for c in range(CLASSES) if all(delta[c] < 0 for delta in deltas)]
    assert 0 in lost and len({delta[0] for delta in deltas}) > 1
    text = (tmp_path / "table7.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]
    start = next(number for number, row in enumerate(rows) if row[0] == "ID")
    assert {int(row[0]) for row in rows[start + 2 :]} == set(lost)
    for row in rows[start + 2 :]:
        values = [100 * delta[int(row[0])] for delta in deltas]
        assert row[1] == f"n{row[0]}"
        assert [float(cell) for cell in row[2:]] == pytest.approx([*values, np.mean(values)], abs=0.051)


def test_what_is_missing(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = f"imagefolder={folder}"
    with pytest.raises(ConfigError, match="a model of timm .*, but got 'deit_smal_patch16_224'; similar .*deit_small"):
        score_timm("timm:deit_smal_patch16_224", data)
    with pytest.raises(ConfigError, match="`--data` to name a folder of validation images for timm:test_vit"):
        score_timm(f"timm:{NAME}", "digits")
    torch.save({"model": {"head.weight": torch.zeros(2, 2)}}, tmp_path / "other.pt")
    with pytest.raises(FileFormatError, match="to fit test_vit, but"):
        score_timm(f"timm:{NAME}@{tmp_path / 'other.pt'}", data)

    def offline(*arguments: Any, **options: Any) -> Any:
        raise OSError("no route to host\nmore")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        ConfigError, match="weights of test_vit to be downloadable, but no route to host; .*test_vit@FILE"
    ):
        score_timm(f"timm:{NAME}", data)
    real = builtins.__import__

    def without_timm(name: str, *arguments: Any) -> Any:
        if name.startswith("timm"):
            raise ImportError("No module named 'timm'")
        return real(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", without_timm)
    with pytest.raises(ConfigError, match=r"timm to be installed for timm:test_vit, .*pip install timm"):
        score_timm(f"timm:{NAME}", data)


def test_without_data_nothing_is_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", f"timm:{NAME}", f"timm:{NAME}"]) == 2
    assert "Expected `--data` to name a folder of validation images for timm:test_vit" in capsys.readouterr().err


def test_another_number_of_classes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained: original(name, num_classes=7))
    with pytest.raises(ConfigError, match=r"as many class folders as test_vit has classes \(7\), but got 3"):
        score_timm(f"timm:{NAME}", f"imagefolder={folder}")
