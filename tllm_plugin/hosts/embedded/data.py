"""Data set of a run, and its batches for training, hold-out and test."""

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
        cfg: Config of the run.
        recorded: Data that an existing network was trained on; images are read with the recorded size and
            normalisation, and class folders in the recorded order.
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
    """Training data of a bundle in the form that the adapter expects, before the hold-out is cut from them.

    Args:
        bundle: The data set.
        cfg: Config of the run.
        device: Device of the batches.
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
        """Return a loader of augmented batches of `indices` (None: all training data), with this rank's rows."""
        return self.bundle.limited(self.cfg.TLLM.VIEWS).train_loader(
            indices,
            batch_size=self.cfg.SOLVER.BATCH_SIZE,
            seed=self.cfg.EXPERIMENT.SEED,
            device=self.device,
            shard=processes.shard(),
            least_rows=self.least_rows,
        )

    def holdout_loader(self, indices: Tensor) -> Any:
        """Return a loader of this rank's batches of `indices` without augmentation, in order."""
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
    """Return this rank's batches `(image, label)` of the test data, in order.

    Args:
        bundle: Data set.
        cfg: Config with the batch size.
        device: Device of the batches.
        rows: (K,) int64 positions in the test data; None for all.
    """
    size = cfg.DATASET.TEST.BATCH_SIZE
    return bundle.eval_loader(rows, batch_size=size, device=device, split="test", shard=processes.shard())
