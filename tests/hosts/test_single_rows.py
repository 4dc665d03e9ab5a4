"""A row that is left over at the end of an epoch, where a BatchNorm cannot be trained on it."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tests.hosts.digits_runs import assert_same_run, make_config, train
from tests.hosts.tiny_data import Rows
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.embedded.data import EmbeddedData, load_bundle
from tllm_plugin.hosts.embedded.distributed import ParallelDistiller, least_rows
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.hosts.host_session import cut
from tllm_plugin.hosts.loader_data import LoaderData
from tllm_plugin.hosts.single_rows import without_single_row
from tllm_plugin.hosts.tllm_node import tllm_node
from tllm_plugin.methods import KD, Vanilla
from tllm_plugin.models.registry import MODELS
from tllm_plugin.models.tiny import TinyConvNet

#: Of 1197 digits 180 are held out; 127 divides what is left, but for one.
ROWS, BATCH = 1017, 127
SMALL = ("SOLVER.BATCH_SIZE", str(BATCH), "DISTILLER.STUDENT", "pixel", "SOLVER.LR", "0.05")


class Flat(nn.Module):
    """A BatchNorm of vectors, or none."""

    def __init__(self, norm: bool) -> None:
        super().__init__()
        layers = [nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8) if norm else nn.Tanh(), nn.Linear(8, 10)]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.layers(image), {}


@pytest.fixture(autouse=True)
def pixel_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Register a network whose last map of a digit is one pixel, for the time of a test."""
    monkeypatch.setattr(MODELS, "_items", dict(MODELS._items))
    MODELS.register("pixel")(partial(TinyConvNet, widths=(4, 6, 8, 12), depth=1))


@pytest.fixture
def rows_per_pass(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Rows of every training pass of a student."""
    seen: list[int] = []
    call = ParallelDistiller.__call__

    def noting(self: ParallelDistiller, **batch: Any) -> Any:
        seen.append(len(batch["target"]))
        return call(self, **batch)

    monkeypatch.setattr(ParallelDistiller, "__call__", noting)
    return seen


@pytest.mark.parametrize("accumulate", [1, 120])
def test_the_embedded_host_trains_and_resumes(
    accumulate: int, tmp_path: Path, rows_per_pass: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*SMALL, "DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "SOLVER.ACCUMULATE", str(accumulate))
    options += ("SOLVER.EPOCHS", "2", "LOG.SAVE_SECONDS", "0")
    whole = train(tmp_path / "whole", *options)
    assert sum(rows_per_pass) == 2 * ROWS and min(rows_per_pass) >= 2
    assert max(rows_per_pass) == (BATCH + 1 if accumulate == 1 else 3)
    train_iter, steps = BaseTrainer.train_iter, [0]

    def interrupted(self: BaseTrainer, image: Tensor, target: Tensor, index: Tensor, epoch: int) -> Any:
        steps[0] += epoch == 2
        if steps[0] == 3:
            raise KeyboardInterrupt
        return train_iter(self, image, target, index, epoch)

    with monkeypatch.context() as patch:
        patch.setattr(BaseTrainer, "train_iter", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", *options)
    assert_same_run(whole, train(tmp_path / "parts", *options, resume=True))


def test_distillation_and_holdout_scoring(tmp_path: Path) -> None:
    options = (*SMALL, "DISTILLER.TEACHER", "pixel", "SOLVER.EPOCHS", "1", "TLLM.DETECTOR.TYPE", "all")
    # Test and hold-out batches of one row, too: networks are in evaluation mode there.
    run = train(tmp_path, *options, "DISTILLER.TEACHER_EPOCHS", "1", "DATASET.TEST.BATCH_SIZE", "179")
    assert run.read_metrics().tested


def test_a_batch_size_of_one_is_explained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^Expected at least two rows for a BatchNorm .* SOLVER\.BATCH_SIZE"):
        train(tmp_path, *SMALL, "SOLVER.BATCH_SIZE", "1", "DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none")


@pytest.mark.parametrize(("norm", "needed"), [(True, 2), (False, 1)])
def test_how_many_rows_a_pass_needs(norm: bool, needed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # The teacher's BatchNorm is not trained.
    distiller = KD(Flat(norm), Flat(True), temperature=4.0, ce_weight=1.0, kd_weight=1.0)
    assert least_rows(distiller) == least_rows(TLLMWrapper(distiller, 10)) == needed
    parallel = ParallelDistiller(Vanilla(Flat(norm)))
    assert [parallel.parts(100, rows) for rows in (1, 2, 5, 64)] == [1, 2 // needed, 5 // needed, 64 // needed]
    monkeypatch.setattr(processes, "world_size", lambda: 2)
    parallel.begin_batch(9)
    # The other process has 4 of the 9 rows.
    assert parallel.parts(100, 5) == 4 // needed


@pytest.mark.parametrize(("least", "expected"), [(1, [128, 1]), (2, [129])])
def test_without_batch_norm_the_single_row_stays(least: int, expected: list[int], tmp_path: Path) -> None:
    cfg = make_config(tmp_path, "SOLVER.BATCH_SIZE", "128")
    data = EmbeddedData(load_bundle(cfg), cfg, torch.device("cpu"), least)
    assert data.train_loader(torch.arange(129)).batch_rows == expected


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize(
    ("count", "size", "expected"),
    [(9, 4, [4, 5]), (10, 4, [4, 4, 2]), (8, 4, [4, 4]), (3, 2, [3]), (3, 1, [1, 1, 1]), (1, 4, [1])],
)
def test_a_hosts_loader(count: int, size: int, expected: list[int], shuffle: bool, workers: int) -> None:
    def batches(loader: DataLoader[Any]) -> list[list[int]]:
        return [index.tolist() for _, _, index in loader]

    def make() -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(7)
        return DataLoader(Rows(count), batch_size=size, shuffle=shuffle, num_workers=workers, generator=generator)

    plain, merged = make(), without_single_row(make())
    assert len(merged) == len(expected) and merged.batch_size == size
    for _ in range(2):
        one, other = batches(plain), batches(merged)
        assert [len(batch) for batch in other] == expected
        assert sum(one, []) == sum(other, [])


def test_the_cut_of_a_hosts_data_leaves_no_single_row() -> None:
    node = tllm_node()
    node.HOLDOUT.FRACTION = 0.1
    host = DataLoader(Rows(200), batch_size=179, shuffle=True)
    data = LoaderData(host, None)
    kept = cut(node, data).train
    assert len(kept) == 180
    assert [len(index) for _, _, index in data.train_loader(kept)] == [180]


@pytest.mark.parametrize("flagged", [False, True])
def test_the_wrapper_asks_no_more_of_a_single_row_than_its_student(flagged: bool) -> None:
    torch.manual_seed(0)
    image, target = torch.randn(1, 1, 8, 8), torch.tensor([3])
    student, teacher = (TinyConvNet(10, 1, widths=(4, 8), depth=1) for _ in range(2))
    wrapper = TLLMWrapper(KD(student, teacher, temperature=4.0, ce_weight=1.0, kd_weight=1.0), 10)
    wrapper.set_undistillable(torch.arange(10) == (3 if flagged else 4))
    logits, losses = wrapper.train()(image=image, target=target, epoch=1)
    assert logits.shape == (1, 10) and all(bool(torch.isfinite(loss).all()) for loss in losses.values())
