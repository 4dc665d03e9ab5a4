"""Class folders in the order that somebody states, their files and labels with them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.data.conftest import MakeFolder
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data import load_data
from tllm_plugin.data.bundle import DataBundle
from tllm_plugin.data.class_order import differing_orders, natural_order

NUMBERED = ("0", "1", "2", "10", "11")
TEXT = ("0", "1", "10", "11", "2")


def load(root: Path, order: str | Sequence[str] = "", image_size: int = 0) -> DataBundle:
    return load_data("imagefolder", str(root), class_order=order, image_size=image_size, num_workers=0)


def images_by_class(bundle: DataBundle) -> dict[str, torch.Tensor]:
    found: dict[str, list[torch.Tensor]] = {}
    for image, label in bundle.eval_loader(None, batch_size=4, device="cpu", split="train"):
        for one, target in zip(image, label.tolist(), strict=True):
            found.setdefault(bundle.class_names[target], []).append(one)
    return {name: torch.stack(images) for name, images in found.items()}


@pytest.mark.parametrize("image_size", [0, 72])
def test_natural_order(image_size: int, make_folder: MakeFolder) -> None:
    root = make_folder(NUMBERED)
    text, natural = load(root, "", image_size), load(root, "natural", image_size)
    assert (text.class_names, natural.class_names) == (TEXT, NUMBERED)
    assert natural.train_labels.tolist() == text.train_labels.tolist() == sorted(text.train_labels.tolist())
    before, after = images_by_class(text), images_by_class(natural)
    assert list(after) == list(NUMBERED)
    for name in NUMBERED:
        assert torch.equal(before[name], after[name]), "every image keeps its class"
    assert (text.order_stated, natural.order_stated) == (False, True)


def test_a_file_of_names(make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder(("cat", "dog", "emu"))
    (root / "classes.txt").write_text("dog\tgood dog\n")
    file = tmp_path / "order.txt"
    file.write_bytes(b"\xef\xbb\xbfemu\r\n\r\ncat\r\ndog\r\n")
    bundle = load(root, str(file))
    assert bundle.class_folders == ("emu", "cat", "dog") and bundle.class_names == ("emu", "cat", "good dog")
    assert load(root, ["emu", "cat", "dog"]).identity == bundle.identity
    assert bundle.identity != load(root).identity


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("cat\n", "1 class 'dog' was added"),
        ("cat\nbird\n", "class 'bird' is now 'dog'"),
        ("cat\ndog\ncat\n", "'cat' appears twice"),
        ("\n \n", "holds none"),
    ],
)
def test_a_file_of_other_names(content: str, told: str, make_folder: MakeFolder, tmp_path: Path) -> None:
    root = make_folder()
    (tmp_path / "order.txt").write_text(content)
    with pytest.raises(ConfigError, match=told):
        load(root, str(tmp_path / "order.txt"))
    with pytest.raises(ConfigError, match="Expected the class order to be '', 'natural' or a file"):
        load(root, str(tmp_path / "missing.txt"))


def test_sets_with_an_order_of_their_own() -> None:
    with pytest.raises(ConfigError, match="digits has an order of its own"):
        load_data("digits", class_order="natural")


def test_order_of_timm() -> None:
    timm_data = pytest.importorskip("timm.data.readers.reader_image_folder")
    names = ["b", "A10", "a9", "C", "10", "9", "x1y10", "x1y9", "_", "01", "1"]
    assert list(natural_order(names)) == sorted(sorted(names), key=timm_data.natural_key)
    assert not differing_orders(["n01", "n02", "n10"]) and differing_orders(["a", "B"])


@pytest.mark.parametrize("image_size", [0, 72])
def test_normalisation_that_is_stated(image_size: int, make_folder: MakeFolder) -> None:
    root = make_folder()
    own = load(root, image_size=image_size)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 1.0)
    stated = load_data("imagefolder", str(root), image_size=image_size, num_workers=0, mean=mean, std=std)
    assert (stated.identity.mean, stated.identity.std) == (mean, std)

    def pixels(bundle: DataBundle) -> torch.Tensor:
        images = images_by_class(bundle)["cat"]
        return images * torch.tensor(bundle.std).view(-1, 1, 1) + torch.tensor(bundle.mean).view(-1, 1, 1)

    torch.testing.assert_close(pixels(own), pixels(stated))
    assert not torch.allclose(images_by_class(own)["cat"], images_by_class(stated)["cat"], atol=1e-2)
    for wrong in (((0.1,), (0.5,)), (mean, ()), (mean, (0.5, 0.0, 1.0)), ((0.1, 0.2, float("nan")), std)):
        with pytest.raises(ConfigError, match="Expected `(mean|std)` to be 3 "):
            load_data("imagefolder", str(root), image_size=image_size, mean=wrong[0], std=wrong[1])
