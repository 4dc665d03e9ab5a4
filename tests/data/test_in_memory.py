"""Loaders over images in memory: what a batch holds, what it depends on, sizes and bad arguments."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.transforms import functional as TF

from tllm_plugin.core.errors import ConfigError, DataError
from tllm_plugin.data import DataBundle, ImageSet, TrainLoader, in_memory
from tllm_plugin.data.in_memory import InMemoryBundle, in_memory_bundle
from tllm_plugin.data.randomness import derived_generator

CPU = torch.device("cpu")
NUM_TRAIN, NUM_TEST, NUM_CLASSES = 50, 20, 4
Batch = tuple[Tensor, Tensor, Tensor]


def image_set(count: int, seed: int, size: int = 8) -> ImageSet:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count) % NUM_CLASSES)


@pytest.fixture
def bundle() -> InMemoryBundle:
    return in_memory_bundle(("a", "b", "c", "d"), image_set(NUM_TRAIN, 0), image_set(NUM_TEST, 1), flip=True)


def train_loader(bundle: DataBundle, indices: Tensor | None = None, batch_size: int = 16, seed: int = 0) -> TrainLoader:
    return bundle.train_loader(indices, batch_size=batch_size, seed=seed, device="cpu")


def epoch(loader: TrainLoader, number: int = 0) -> Batch:
    """All batches of an epoch, joined."""
    loader.set_epoch(number)
    images, targets, indices = zip(*loader, strict=True)
    return torch.cat(images), torch.cat(targets), torch.cat(indices)


def equal(one: Batch, other: Batch) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def by_index(batch: Batch) -> Tensor:
    return batch[0][batch[2].argsort()]


def normalised(images: Tensor, bundle: DataBundle) -> Tensor:
    return torch.stack([TF.normalize(image.float() / 255, list(bundle.mean), list(bundle.std)) for image in images])


def test_a_batch_holds_normalised_images_their_labels_and_positions(bundle: InMemoryBundle) -> None:
    image, target, index = next(iter(train_loader(bundle)))
    assert (image.shape, image.dtype) == ((16, 3, 8, 8), torch.float32)
    assert (target.shape, target.dtype) == ((16,), torch.int64)
    assert (index.shape, index.dtype) == ((16,), torch.int64)
    assert torch.equal(target, bundle.train_labels[index])


def test_a_training_image_is_augmented_as_torchvision_would(bundle: InMemoryBundle) -> None:
    images, _, indices = epoch(train_loader(bundle, seed=5), 3)
    draws = bundle.augmentation.draw(NUM_TRAIN, derived_generator(5, 3, "augmentation"))
    for image, row in zip(images, indices.tolist(), strict=True):
        top, left, mirrored = draws[row].tolist()
        expected = TF.crop(TF.pad(bundle.train.images[row], [1]), top, left, 8, 8)
        expected = TF.hflip(expected) if mirrored else expected
        assert torch.equal(image, normalised(expected.unsqueeze(0), bundle)[0])


def test_an_epoch_shows_every_row_once_in_random_order(bundle: InMemoryBundle) -> None:
    indices = epoch(train_loader(bundle))[2]
    assert not torch.equal(indices, torch.arange(NUM_TRAIN))
    assert torch.equal(indices.sort().values, torch.arange(NUM_TRAIN))


def test_an_epoch_shows_the_chosen_rows_only(bundle: InMemoryBundle) -> None:
    chosen = torch.tensor([40, 3, 3, 17])
    assert epoch(train_loader(bundle, chosen))[2].sort().values.tolist() == [3, 3, 17, 40]


def test_seed_and_epoch_determine_everything(bundle: InMemoryBundle) -> None:
    loader = train_loader(bundle)
    first = epoch(loader, 2)
    epoch(loader, 7)
    assert equal(epoch(loader, 2), first)
    assert equal(epoch(train_loader(bundle), 2), first)


@pytest.mark.parametrize(("seed", "number"), [(0, 1), (1, 0)], ids=["epoch", "seed"])
def test_another_seed_or_epoch_changes_order_and_augmentation(bundle: InMemoryBundle, seed: int, number: int) -> None:
    one, other = epoch(train_loader(bundle)), epoch(train_loader(bundle, seed=seed), number)
    assert not torch.equal(one[2], other[2])
    assert not torch.equal(by_index(one), by_index(other))


def test_iterating_twice_without_set_epoch_repeats_the_epoch(bundle: InMemoryBundle) -> None:
    loader = train_loader(bundle)
    for one, other in zip(loader, loader, strict=True):
        assert equal(one, other)


def test_set_epoch_does_not_change_an_epoch_under_way(bundle: InMemoryBundle) -> None:
    loader = train_loader(bundle)
    expected = epoch(loader, 0)
    batches = iter(loader)
    images = [next(batches)[0]]
    loader.set_epoch(1)
    images += [image for image, _, _ in batches]
    assert torch.equal(torch.cat(images), expected[0])


def test_an_augmentation_depends_neither_on_batch_size_nor_on_the_other_rows(bundle: InMemoryBundle) -> None:
    whole = by_index(epoch(train_loader(bundle)))
    assert torch.equal(by_index(epoch(train_loader(bundle, batch_size=7))), whole)
    half = torch.arange(1, NUM_TRAIN, 2)
    assert torch.equal(by_index(epoch(train_loader(bundle, half))), whole[half])


@pytest.mark.parametrize("batches", [1, 2, 100])
def test_batches_do_not_depend_on_how_many_are_augmented_together(
    batches: int, bundle: InMemoryBundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = list(train_loader(bundle))
    monkeypatch.setattr(in_memory, "_VALUES_TOGETHER", batches * 16 * 3 * 8 * 8)
    parts = list(train_loader(bundle))
    assert [len(target) for _, target, _ in parts] == [16, 16, 16, 2]
    assert all(equal(one, other) for one, other in zip(whole, parts, strict=True))
    assert all(image.is_contiguous() for image, _, _ in parts)


def test_global_random_numbers_are_neither_read_nor_advanced(bundle: InMemoryBundle) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    one = epoch(train_loader(bundle))
    list(bundle.eval_loader(None, batch_size=8, device="cpu", split="test"))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert equal(epoch(train_loader(bundle)), one)


@pytest.mark.parametrize("split", ["train", "test"])
def test_evaluation_keeps_the_order_and_does_not_augment(bundle: InMemoryBundle, split: str) -> None:
    chosen = torch.tensor([9, 2, 2, 15, 0])
    source = bundle.train if split == "train" else bundle.test
    loader = bundle.eval_loader(chosen, batch_size=2, device="cpu", split=split)  # type: ignore[arg-type]
    images, targets = (torch.cat(parts) for parts in zip(*loader, strict=True))
    assert torch.equal(images, normalised(source.images[chosen], bundle))
    assert torch.equal(targets, source.labels[chosen])


def test_normalised_training_images_have_mean_0_and_deviation_1(bundle: InMemoryBundle) -> None:
    loader = bundle.eval_loader(None, batch_size=64, device="cpu", split="train")
    ((images, _),) = loader
    pixels = images.transpose(0, 1).flatten(1)
    torch.testing.assert_close(pixels.mean(1), torch.zeros(3), rtol=0, atol=1e-5)
    torch.testing.assert_close(pixels.std(1, correction=0), torch.ones(3), rtol=0, atol=1e-5)


@pytest.mark.parametrize(("batch_size", "sizes"), [(16, [16, 16, 16, 2]), (25, [25, 25]), (50, [50]), (64, [50])])
def test_batch_sizes(bundle: InMemoryBundle, batch_size: int, sizes: list[int]) -> None:
    loader = bundle.train_loader(None, batch_size=batch_size, seed=0, device="cpu")
    assert [len(image) for image, _, _ in loader] == sizes
    assert (len(loader), loader.num_samples) == (len(sizes), NUM_TRAIN)


@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [8, 8, 4]), (20, [20]), (64, [20])])
def test_evaluation_batch_sizes(bundle: InMemoryBundle, batch_size: int, sizes: list[int]) -> None:
    loader = bundle.eval_loader(None, batch_size=batch_size, device="cpu", split="test")
    assert [len(image) for image, _ in loader] == sizes
    assert (len(loader), loader.num_samples) == (len(sizes), NUM_TEST)


def test_evaluation_of_no_rows_has_no_batches(bundle: InMemoryBundle) -> None:
    loader = bundle.eval_loader(torch.tensor([], dtype=torch.int64), batch_size=4, device="cpu", split="test")
    assert (len(loader), loader.num_samples, list(loader)) == (0, 0, [])


def test_a_single_training_image_is_enough(bundle: InMemoryBundle) -> None:
    assert epoch(train_loader(bundle, torch.tensor([7])))[2].tolist() == [7]


def test_loaders_share_one_copy_per_device(bundle: InMemoryBundle) -> None:
    assert bundle.resident("train", CPU) is bundle.resident("train", CPU)
    assert bundle.resident("train", CPU).images.data_ptr() == bundle.train.images.data_ptr()


@pytest.mark.parametrize(("size", "padding"), [(64, 8), (32, 4), (8, 1), (7, 0)])
def test_images_are_shifted_by_an_eighth_of_their_size(size: int, padding: int) -> None:
    bundle = in_memory_bundle(("a", "b", "c", "d"), image_set(4, 0, size), image_set(4, 1, size), flip=False)
    assert (bundle.augmentation.padding, bundle.augmentation.flip) == (padding, False)
    assert epoch(train_loader(bundle))[0].shape == (4, 3, size, size)


def test_training_on_nothing_is_refused(bundle: InMemoryBundle) -> None:
    with pytest.raises(ConfigError, match="^Expected `indices` to name at least one training image, but got none$"):
        train_loader(bundle, torch.tensor([], dtype=torch.int64))


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_size_below_1_is_refused(bundle: InMemoryBundle, batch_size: int) -> None:
    message = f"^Expected `batch_size` to be at least 1, but got {batch_size}$"
    with pytest.raises(ConfigError, match=message):
        train_loader(bundle, batch_size=batch_size)
    with pytest.raises(ConfigError, match=message):
        bundle.eval_loader(None, batch_size=batch_size, device="cpu", split="test")


@pytest.mark.parametrize(
    ("indices", "message"),
    [
        (torch.tensor([0, 50]), "to be from 0 to 49, but got 0 to 50"),
        (torch.tensor([-1, 3]), "to be from 0 to 49, but got -1 to 3"),
        (torch.tensor([0.0]), r"to be \(K,\) int64, positions of training images, but got \(1,\) float32"),
        (torch.tensor([[0]]), r"to be \(K,\) int64, positions of training images, but got \(1, 1\) int64"),
        (torch.ones(50, dtype=torch.bool), r"to be \(K,\) int64, .* but got \(50,\) bool"),
    ],
    ids=["too large", "negative", "float", "two axes", "mask"],
)
def test_bad_indices_are_refused(bundle: InMemoryBundle, indices: Tensor, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^Expected `indices` {message}$"):
        train_loader(bundle, indices)
    with pytest.raises(ConfigError, match=f"^Expected `indices` {message}$"):
        bundle.eval_loader(indices, batch_size=4, device="cpu", split="train")


def test_indices_are_checked_against_the_split_that_is_read(bundle: InMemoryBundle) -> None:
    with pytest.raises(ConfigError, match="^Expected `indices` to be from 0 to 19, but got 20 to 20$"):
        bundle.eval_loader(torch.tensor([20]), batch_size=4, device="cpu", split="test")


def test_an_unknown_split_is_refused(bundle: InMemoryBundle) -> None:
    with pytest.raises(ConfigError, match="^Expected `split` to be one of test, train, but got 'val'$"):
        bundle.eval_loader(None, batch_size=4, device="cpu", split="val")  # type: ignore[arg-type]


def test_labels_outside_the_classes_are_refused() -> None:
    with pytest.raises(DataError, match="^Expected `train_labels` to be from 0 to 2, but got 0 to 3$"):
        in_memory_bundle(("a", "b", "c"), image_set(8, 0), image_set(8, 1), flip=True)


@pytest.mark.parametrize(
    ("images", "labels", "message"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2).long(), r"`images` to be \(N, C, H, W\) uint8, but got .* float32"),
        (torch.zeros(2, 4, 4).byte(), torch.zeros(2).long(), r"`images` .* but got \(2, 4, 4\) uint8"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(3).long(), r"`labels` to be \(2,\) int64, .* \(3,\) int64"),
        (torch.zeros(2, 3, 4, 4).byte(), torch.zeros(2).int(), r"`labels` to be \(2,\) int64, .* \(2,\) int32"),
    ],
    ids=["float images", "no channels", "too many labels", "int32 labels"],
)
def test_an_image_set_checks_its_tensors(images: Tensor, labels: Tensor, message: str) -> None:
    with pytest.raises(DataError, match=f"^Expected {message}$"):
        ImageSet(images, labels)


def test_images_that_are_not_square_or_of_one_size_are_refused() -> None:
    wide = ImageSet(torch.zeros(4, 3, 8, 10, dtype=torch.uint8), torch.arange(4))
    message = r"^Expected `train` and `test` to hold square images of one size, .* \(3, 8, {}\) and \(3, {}, {}\)$"
    with pytest.raises(DataError, match=message.format(10, 8, 10)):
        in_memory_bundle(("a", "b", "c", "d"), wide, wide, flip=True)
    with pytest.raises(DataError, match=message.format(8, 16, 16)):
        in_memory_bundle(("a", "b", "c", "d"), image_set(4, 0), image_set(4, 1, size=16), flip=True)


def test_a_bundle_without_training_images_is_refused() -> None:
    with pytest.raises(DataError, match="^Expected `train` to hold at least one image, but it holds none$"):
        in_memory_bundle(("a",), image_set(0, 0), image_set(4, 1), flip=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_batches_on_a_gpu_equal_those_on_the_cpu(bundle: InMemoryBundle) -> None:
    on_gpu = epoch(bundle.train_loader(None, batch_size=16, seed=0, device="cuda"), 1)
    assert all(part.is_cuda for part in on_gpu)
    image, target, index = epoch(train_loader(bundle), 1)
    torch.testing.assert_close(on_gpu[0].cpu(), image)
    assert torch.equal(on_gpu[1].cpu(), target)
    assert torch.equal(on_gpu[2].cpu(), index)
