"""Several readers of one data set: together they see what one sees, in the same batches, augmented alike."""

from __future__ import annotations

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.data import DataBundle, load_data
from tllm_plugin.data.shards import WHOLE, Shard

BATCH_SIZE = 7


@pytest.fixture(scope="module")
def digits() -> DataBundle:
    return load_data("digits")


@pytest.fixture
def photographs(make_folder) -> DataBundle:
    return load_data("imagefolder", str(make_folder(per_class=8, size=(80, 70))), image_size=72, num_workers=2)


def epoch(bundle: DataBundle, shard: Shard, rows: Tensor, number: int = 3) -> list[tuple[Tensor, Tensor, Tensor]]:
    loader = bundle.train_loader(rows, batch_size=BATCH_SIZE, seed=1, device="cpu", shard=shard)
    loader.set_epoch(number)
    return list(loader)


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", ["digits", "photographs"])
def test_training_batches_are_shared(name: str, count: int, request: pytest.FixtureRequest) -> None:
    bundle: DataBundle = request.getfixturevalue(name)
    rows = torch.arange(14 if name == "photographs" else 54, 0, -1)  # The last batch is of 5 digits.
    whole = epoch(bundle, WHOLE, rows)
    shards = [epoch(bundle, Shard(number, count), rows) for number in range(count)]
    assert all(len(shard) == len(whole) for shard in shards)
    for batch, parts in zip(whole, zip(*shards, strict=True), strict=True):
        sizes = [len(part[1]) for part in parts]
        assert max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
        for wanted, got in zip(batch, zip(*parts, strict=True), strict=True):
            assert torch.equal(torch.cat(got), wanted)


@pytest.mark.parametrize("count", [2, 9])
@pytest.mark.parametrize("name", ["digits", "photographs"])
def test_evaluation_batches_are_dealt_out(name: str, count: int, request: pytest.FixtureRequest) -> None:
    bundle: DataBundle = request.getfixturevalue(name)
    rows = torch.arange(16 if name == "photographs" else 54, 0, -1) - 1

    def batches(shard: Shard):
        return bundle.eval_loader(rows, batch_size=BATCH_SIZE, device="cpu", split="train", shard=shard)

    whole = list(batches(WHOLE))
    total = torch.zeros(len(rows))
    places = []
    for number in range(count):
        loader = batches(Shard(number, count))
        own = list(loader)
        assert len(loader) == len(own) and loader.num_samples == len(rows)
        for image, target in own:
            same = [place for place, (other, _) in enumerate(whole) if torch.equal(other, image)]
            assert torch.equal(whole[same[0]][1], target)
            places += same
        values = torch.cat([target for _, target in own]) if own else torch.empty(0, dtype=torch.int64)
        total += loader.in_place(values)
    assert sorted(places) == list(range(len(whole)))
    assert torch.equal(total.long(), bundle.train_labels[rows])


def test_in_place_keeps_the_dtype_and_further_dimensions(digits: DataBundle) -> None:
    loader = digits.eval_loader(torch.arange(3), batch_size=1, device="cpu", split="test", shard=Shard(1, 2))
    assert loader.in_place(torch.tensor([[7, 8]], dtype=torch.uint8)).tolist() == [[0, 0], [7, 8], [0, 0]]
    assert loader.in_place(torch.ones(1, dtype=torch.uint8)).dtype == torch.uint8


def test_batch_rows_are_those_of_all_shards(digits: DataBundle) -> None:
    loader = digits.train_loader(torch.arange(16), batch_size=7, seed=0, device="cpu", shard=Shard(1, 2))
    assert loader.batch_rows == [7, 7, 2] and loader.num_samples == 16
    assert digits.train_loader(torch.arange(3), batch_size=7, seed=0, device="cpu").batch_rows == [3]


@pytest.mark.parametrize("name", ["digits", "photographs"])
@pytest.mark.parametrize(
    ("rows", "count", "least_rows", "expected"),
    [
        (15, 1, 1, [7, 7, 1]),
        (15, 1, 2, [7, 8]),
        (16, 1, 2, [7, 7, 2]),
        (16, 3, 1, [7, 9]),
        (10, 2, 2, [10]),
        (11, 2, 2, [7, 4]),
        (1, 1, 2, [1]),
    ],
)
def test_a_last_batch_that_is_too_small_joins_the_one_before(
    name: str, rows: int, count: int, least_rows: int, expected: list[int], request: pytest.FixtureRequest
) -> None:
    bundle: DataBundle = request.getfixturevalue(name)
    chosen = torch.arange(rows)
    seen: dict[int, list[list[int]]] = {}
    for number in range(count):
        loader = bundle.train_loader(
            chosen, batch_size=7, seed=0, device="cpu", shard=Shard(number, count), least_rows=least_rows
        )
        assert (loader.batch_rows, len(loader)) == (expected, len(expected))
        for epoch_number in (1, 2, 1):
            loader.set_epoch(epoch_number)
            batches = [index.tolist() for _, _, index in loader]
            assert all(len(batch) >= min(least_rows, rows) for batch in batches)
            seen.setdefault(epoch_number, []).append([index for batch in batches for index in batch])
            if number:
                continue
            # The same rows in the same order, cut otherwise.
            plain = bundle.train_loader(chosen, batch_size=7, seed=0, device="cpu")
            plain.set_epoch(epoch_number)
            if count == 1:
                assert sum(batches, []) == torch.cat([index for _, _, index in plain]).tolist()
    once = [rows for rows in seen[1][::2]]
    assert seen[1][::2] == seen[1][1::2]  # A resumed epoch is the same again.
    assert sorted(sum(once, [])) == sorted(sum(seen[2], [])) == chosen.tolist()


def test_a_batch_with_fewer_rows_than_shards_is_refused(digits: DataBundle) -> None:
    with pytest.raises(ConfigError, match=r"at least 3 rows, one for each process, .* of 16 .* has 2;"):
        digits.train_loader(torch.arange(16), batch_size=2, seed=0, device="cpu", shard=Shard(0, 3))


@pytest.mark.parametrize(("number", "count"), [(-1, 2), (2, 2), (0, 0)])
def test_a_shard_that_there_is_not_is_refused(number: int, count: int) -> None:
    with pytest.raises(ConfigError, match="Expected `number` to be from 0 to"):
        Shard(number, count)


def test_gather_adds_what_the_other_processes_have(digits: DataBundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """Real processes are in `tests/hosts/test_processes.py`."""
    rows = torch.arange(5)
    how = {"batch_size": 2, "device": "cpu", "split": "test"}
    loaders = [digits.eval_loader(rows, **how, shard=Shard(number, 2)) for number in range(2)]
    values = torch.arange(10, 15, dtype=torch.uint8)
    others = loaders[1].in_place(values[2:4])
    monkeypatch.setattr(dist, "all_reduce", lambda tensor: tensor.add_(others))
    assert torch.equal(loaders[0].gather(values[[0, 1, 4]]), values)
    alone = digits.eval_loader(rows, **how)
    assert alone.gather(values) is values
