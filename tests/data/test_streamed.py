"""Large images, read from disk in every epoch: the number of workers changes nothing, nor do global random numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision import transforms

from tllm_plugin.core.errors import DataError
from tllm_plugin.data import load_data
from tllm_plugin.data.streamed import StreamedBundle

SIZE = 72


def load(root: Path, num_workers: int = 0) -> StreamedBundle:
    bundle = load_data("imagefolder", str(root), image_size=SIZE, num_workers=num_workers)
    assert isinstance(bundle, StreamedBundle)
    return bundle


@pytest.fixture
def root(make_folder) -> Path:
    return make_folder(per_class=4, size=(100, 90))


def epoch(bundle: StreamedBundle, number: int = 0, batch_size: int = 3, seed: int = 0) -> list[Tensor]:
    loader = bundle.train_loader(None, batch_size=batch_size, seed=seed, device="cpu")
    loader.set_epoch(number)
    return [torch.cat(parts) for parts in zip(*loader, strict=True)]


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def by_index(batch: list[Tensor]) -> Tensor:
    return batch[0][batch[2].argsort()]


def test_workers_change_nothing(root: Path) -> None:
    for number in range(2):
        assert equal(epoch(load(root, num_workers=2), number), epoch(load(root), number))
    one, other = (
        [image for image, _ in load(root, workers).eval_loader(None, batch_size=3, device="cpu", split="test")]
        for workers in (0, 2)
    )
    assert equal(one, other)


def test_a_batch_holds_images_labels_and_positions(root: Path) -> None:
    bundle = load(root)
    image, target, index = epoch(bundle)
    assert (image.shape, image.dtype) == ((8, 3, SIZE, SIZE), torch.float32)
    assert torch.equal(target, bundle.train_labels[index])
    assert sorted(index.tolist()) == list(range(8))


def test_seed_and_epoch_determine_everything(root: Path) -> None:
    bundle = load(root)
    one = epoch(bundle)
    assert equal(epoch(bundle), one)
    assert torch.equal(by_index(epoch(bundle, batch_size=8)), by_index(one))
    for other in (epoch(bundle, number=1), epoch(bundle, seed=1)):
        assert not torch.equal(by_index(other), by_index(one))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_numbers_are_neither_read_nor_advanced(root: Path, num_workers: int) -> None:
    bundle = load(root, num_workers)
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = epoch(bundle)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert equal(epoch(bundle), one)


def test_evaluation_resizes_and_crops_as_torchvision_does(root: Path) -> None:
    bundle = load(root)
    chosen = torch.tensor([6, 1, 1])
    reference = transforms.Compose(
        [
            transforms.Resize(82),
            transforms.CenterCrop(SIZE),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    images, targets = zip(*bundle.eval_loader(chosen, batch_size=2, device="cpu", split="test"), strict=True)
    expected = [reference(Image.open(bundle.test_files[row])) for row in chosen]
    assert [len(image) for image in images] == [2, 1]
    assert torch.equal(torch.cat(images), torch.stack(expected))
    assert torch.equal(torch.cat(targets), bundle.test_labels[chosen])


def test_a_smaller_last_batch_and_no_rows(root: Path) -> None:
    bundle = load(root)
    loader = bundle.train_loader(None, batch_size=3, seed=0, device="cpu")
    assert [len(index) for _, _, index in loader] == [3, 3, 2]
    none = torch.tensor([], dtype=torch.int64)
    assert list(bundle.eval_loader(none, batch_size=3, device="cpu", split="train")) == []


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_damaged_image_is_named(root: Path, num_workers: int) -> None:
    file = root / "train" / "dog" / "1.png"
    file.write_bytes(file.read_bytes()[:500])
    with pytest.raises(DataError, match="^Expected `.*dog/1.png` to be an image, but reading it failed: "):
        epoch(load(root, num_workers))
