"""The data set of a run, and its batches for training, hold-out and test."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from yacs.config import CfgNode

from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.data import DataBundle, load_data
from tllm_plugin.data.loaders import EvalLoader
from tllm_plugin.hosts import processes


def load_bundle(cfg: CfgNode, recorded: DataIdentity | None = None) -> DataBundle:
    """Load the data set of a config.

    Args:
        cfg: Of the run.
        recorded: How a network met the data that is to be asked again: its images are read in that size, and normalised
            by these numbers, and its class folders are taken in that order.
    """
    recorded = recorded or DataIdentity()

    def load() -> DataBundle:
        return load_data(
            cfg.DATASET.TYPE,
            cfg.DATASET.PATH,
            download=cfg.DATASET.DOWNLOAD,
            image_size=recorded.image_size or cfg.DATASET.IMAGE_SIZE,
            num_workers=cfg.DATASET.NUM_WORKERS,
            seed=cfg.EXPERIMENT.SEED,
            class_order=recorded.class_folders or cfg.DATASET.CLASS_ORDER,
            mean=recorded.mean or cfg.DATASET.MEAN,
            std=recorded.std or cfg.DATASET.STD,
        )

    return processes.one_per_machine_first(load) if cfg.DATASET.DOWNLOAD else load()


@dataclass(frozen=True)
class EmbeddedData:
    """The training data of a bundle, as the adapter wants it; stands in for a loader until the hold-out is cut.

    Args:
        bundle: The data set.
        cfg: Of the run.
        device: Where the batches end up.
        least_rows: See `DataBundle.train_loader`.
    """

    bundle: DataBundle
    cfg: CfgNode
    device: torch.device
    least_rows: int

    @property
    def labels(self) -> Tensor:
        return self.bundle.train_labels

    @property
    def class_names(self) -> tuple[str, ...]:
        return self.bundle.class_names

    @property
    def identity(self) -> DataIdentity:
        return self.bundle.identity

    def train_loader(self, indices: Tensor | None) -> Any:
        """Return this process's rows of augmented batches of `indices` (all of the training part for None)."""
        return self.bundle.limited(self.cfg.TLLM.VIEWS).train_loader(
            indices,
            batch_size=self.cfg.SOLVER.BATCH_SIZE,
            seed=self.cfg.EXPERIMENT.SEED,
            device=self.device,
            shard=processes.shard(),
            least_rows=self.least_rows,
        )

    def holdout_loader(self, indices: Tensor) -> Any:
        """Return this process's un-augmented batches of `indices`, in order."""
        return self.bundle.eval_loader(
            indices,
            batch_size=self.cfg.DATASET.TEST.BATCH_SIZE,
            device=self.device,
            split="train",
            shard=processes.shard(),
        )


def batches_of_test_set(
    bundle: DataBundle, cfg: CfgNode, device: torch.device, rows: Tensor | None = None
) -> EvalLoader:
    """Return this process's batches `(image, label)` of the test data, in order.

    Args:
        bundle: The data.
        cfg: Says how large a batch is.
        device: Where to.
        rows: (K,) int64 positions in the test data; all of them for None.
    """
    size = cfg.DATASET.TEST.BATCH_SIZE
    return bundle.eval_loader(rows, batch_size=size, device=device, split="test", shard=processes.shard())
