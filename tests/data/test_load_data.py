"""Data sets by name: digits, CIFAR-100 (from files made here), one's own; and what random numbers are made from."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import datasets as sklearn_datasets
from torchvision.datasets import CIFAR100

from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.core.registry import Registry
from tllm_plugin.data import DATA_SETS, DataBundle, DataSetLoader, load_data
from tllm_plugin.data.in_memory import InMemoryBundle
from tllm_plugin.data.randomness import borrowed_cpu_rng, derived_generator, derived_seed


@pytest.fixture(scope="module")
def digits() -> InMemoryBundle:
    bundle = load_data("digits")
    assert isinstance(bundle, InMemoryBundle)
    return bundle


def test_digits_have_600_test_images_60_of_each_class(digits: InMemoryBundle) -> None:
    assert torch.bincount(digits.test_labels).tolist() == [60] * 10
    assert len(digits.train_labels) == 1_197
    assert (digits.num_classes, digits.in_channels, digits.image_size) == (10, 1, 8)
    assert digits.class_names == tuple("0123456789")


def test_digits_hold_every_image_once_at_full_range(digits: InMemoryBundle) -> None:
    source = sklearn_datasets.load_digits()
    # Each of the 17 grey values has a byte of its own, so that images can be compared as sorted lists.
    expected = sorted((*image.ravel(), label) for image, label in zip(source.images, source.target, strict=True))
    found = []
    for part in (digits.train, digits.test):
        levels = (part.images.double() * 16 / 255).round().flatten(1)
        found += [(*row, label) for row, label in zip(levels.tolist(), part.labels.tolist(), strict=True)]
    assert sorted(found) == [tuple(float(value) for value in row) for row in expected]
    assert int(digits.train.images.max()) == 255


def test_digits_are_split_alike_whatever_the_seed(digits: InMemoryBundle) -> None:
    other = load_data("digits", seed=17)
    assert isinstance(other, InMemoryBundle)
    assert torch.equal(other.test.images, digits.test.images)


def test_digits_are_tested_on_images_from_all_over_the_file(digits: InMemoryBundle) -> None:
    source = sklearn_datasets.load_digits()
    zeros = np.flatnonzero(source.target == 0)
    expected = source.images[[zeros[position * len(zeros) // 60] for position in range(60)]] * 255 / 16
    found = digits.test.images[digits.test_labels == 0].squeeze(1)
    assert torch.equal(found, torch.from_numpy(expected).round().to(torch.uint8))


def test_digits_are_shifted_by_one_pixel_and_not_mirrored(digits: InMemoryBundle) -> None:
    assert (digits.augmentation.padding, digits.augmentation.flip) == (1, False)


def test_digits_come_in_one_size() -> None:
    assert load_data("digits", image_size=8).image_size == 8
    with pytest.raises(ConfigError, match="^Expected `image_size` to be 0 or 8 for digits, but got 32$"):
        load_data("digits", image_size=32)


@pytest.fixture
def cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with CIFAR-100's files, holding 200 and 100 images of noise, whose checksums torchvision is told."""
    folder = tmp_path / CIFAR100.base_folder
    folder.mkdir()
    rng = np.random.default_rng(0)

    def write(name: str, content: dict[str, object]) -> str:
        data = pickle.dumps(content)
        (folder / name).write_bytes(data)
        return hashlib.md5(data).hexdigest()

    def part(count: int) -> dict[str, object]:
        pixels = rng.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        return {"data": pixels, "fine_labels": [row % 100 for row in range(count)]}

    monkeypatch.setattr(CIFAR100, "train_list", [["train", write("train", part(200))]])
    monkeypatch.setattr(CIFAR100, "test_list", [["test", write("test", part(100))]])
    names = [f"name {label}" for label in range(100)]
    checksum = write("meta", {"fine_label_names": names})
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": checksum})
    return tmp_path


def test_cifar100_holds_torchvisions_images(cifar: Path) -> None:
    bundle = load_data("cifar100", str(cifar))
    assert isinstance(bundle, InMemoryBundle)
    assert (bundle.num_classes, bundle.in_channels, bundle.image_size) == (100, 3, 32)
    assert bundle.class_names[:2] == ("name 0", "name 1")
    for held, expected in ((bundle.train, CIFAR100(str(cifar))), (bundle.test, CIFAR100(str(cifar), train=False))):
        assert torch.equal(held.images.permute(0, 2, 3, 1), torch.from_numpy(expected.data))
        assert held.labels.tolist() == expected.targets
    assert (bundle.augmentation.padding, bundle.augmentation.flip) == (4, True)


def test_cifar100_is_normalised_by_the_published_numbers(cifar: Path) -> None:
    bundle = load_data("cifar100", str(cifar), image_size=32)
    assert bundle.mean == (0.5071, 0.4867, 0.4408)
    assert bundle.std == (0.2675, 0.2565, 0.2761)


def test_cifar100_needs_a_path() -> None:
    with pytest.raises(ConfigError, match="^Expected `path` to be the folder of CIFAR-100's files, but got ''$"):
        load_data("cifar100")


def test_cifar100_comes_in_one_size(cifar: Path) -> None:
    with pytest.raises(ConfigError, match="^Expected `image_size` to be 0 or 32 for cifar100, but got 64$"):
        load_data("cifar100", str(cifar), image_size=64)


def test_missing_cifar100_is_refused_with_a_hint(tmp_path: Path) -> None:
    message = f"^Expected `{tmp_path / CIFAR100.base_folder}` to hold .* missing or damaged .set `download` to download"
    with pytest.raises(DataError, match=message):
        load_data("cifar100", str(tmp_path))


def test_damaged_cifar100_is_not_unpickled(cifar: Path) -> None:
    class Harmful:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (cifar / "harm",))  # type: ignore[return-value]

    (cifar / CIFAR100.base_folder / "train").write_bytes(pickle.dumps(Harmful()))
    with pytest.raises(DataError, match="missing or damaged"):
        load_data("cifar100", str(cifar))
    assert not (cifar / "harm").exists()


def test_a_failing_download_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fail)
    with pytest.raises(DataError, match=r"missing or damaged \(the download failed\): no route to host$"):
        load_data("cifar100", str(tmp_path), download=True)


def test_known_names_are_listed_for_an_unknown_one() -> None:
    with pytest.raises(
        ConfigError, match="^Expected `data set` to be one of cifar100, cub200, digits, imagefolder, but got"
    ):
        load_data("digit")


@pytest.mark.parametrize("argument", ["image_size", "num_workers"])
def test_negative_numbers_are_refused(argument: str) -> None:
    with pytest.raises(ConfigError, match=f"^Expected `{argument}` to be at least 0, but got -1$"):
        load_data("digits", **{argument: -1})  # type: ignore[arg-type]


def test_a_registered_data_set_gets_all_arguments(monkeypatch: pytest.MonkeyPatch, digits: InMemoryBundle) -> None:
    registry: Registry[DataSetLoader] = Registry("data set")
    monkeypatch.setattr("tllm_plugin.data.DATA_SETS", registry)
    received: dict[str, object] = {}

    @registry.register("own")
    def load_own(path: str, *, download: bool, image_size: int, num_workers: int, seed: int) -> DataBundle:
        received.update(path=path, download=download, image_size=image_size, num_workers=num_workers, seed=seed)
        return digits

    assert load_data("own", "here", download=True, image_size=5, num_workers=3, seed=9) is digits
    assert received == {"path": "here", "download": True, "image_size": 5, "num_workers": 3, "seed": 9}
    assert "own" not in DATA_SETS


def test_batches_are_made_on_the_device_that_is_asked_for(cifar: Path) -> None:
    # A meta tensor has a shape and no values: reading one back to the host, or mixing devices, raises.
    bundle = load_data("cifar100", str(cifar))
    batches = list(bundle.train_loader(None, batch_size=150, seed=0, device="meta"))
    assert [tuple(image.shape) for image, _, _ in batches] == [(150, 3, 32, 32), (50, 3, 32, 32)]
    assert all(part.is_meta for batch in batches for part in batch)
    ((image, target),) = bundle.eval_loader(None, batch_size=100, device="meta", split="test")
    assert image.is_meta and target.is_meta


def test_a_derived_seed_is_the_same_in_every_process() -> None:
    # What exact resume rests on. Written down here, because a changed value would change every resumed run.
    assert derived_seed(0, 3, "order") == 3_988_187_287_187_310_426


def test_different_keys_give_different_seeds() -> None:
    keys = [(seed, epoch, purpose) for seed in (-1, 0, 1) for epoch in range(50) for purpose in ("order", "flip", 3)]
    seeds = {derived_seed(*key) for key in keys}
    assert len(seeds) == len(keys)
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_borrowed_random_numbers_are_given_back_after_an_error() -> None:
    state = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), borrowed_cpu_rng(7):
        drawn = torch.rand(3)
        raise RuntimeError("stop")
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(drawn, torch.rand(3, generator=torch.Generator().manual_seed(7)))
    assert torch.equal(
        torch.rand(3, generator=derived_generator(1, 2)), torch.rand(3, generator=derived_generator(1, 2))
    )
