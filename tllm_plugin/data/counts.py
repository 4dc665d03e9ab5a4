"""How many training images a data set has of each class, without decoding one."""

from __future__ import annotations

from collections.abc import Callable

import torch

from tllm_plugin.data.bundle import DataBundle
from tllm_plugin.data.cub200 import read_cub200
from tllm_plugin.data.digits import load_digits
from tllm_plugin.data.folder import find_parts
from tllm_plugin.data.registry import DataSetLoader

_COUNTS: dict[str, Callable[[str], list[int]]] = {
    "digits": lambda path: torch.bincount(_load(load_digits, path).train_labels).tolist(),
    "imagefolder": lambda path: torch.bincount(find_parts(path)[0].labels).tolist(),
    "cifar100": lambda path: [500] * 100,
    "cub200": lambda path: torch.bincount(torch.tensor(read_cub200(path).train_labels)).tolist(),
}


def _load(load: DataSetLoader, path: str) -> DataBundle:
    return load(path, download=False, image_size=0, num_workers=0, seed=0)


def training_counts(name: str, path: str) -> list[int] | None:
    """Return the number of training images of each class; None for a data set of the user's own.

    Args:
        name: As in `load_data`.
        path: As in `load_data`.

    Raises:
        ConfigError, DataError: The folder is not what it should be.
    """
    count = _COUNTS.get(name)
    return None if count is None else count(path)
