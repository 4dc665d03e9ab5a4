"""Registry of the data sets that configs select by name."""

from __future__ import annotations

from typing import Protocol

from tllm_plugin.core.registry import Registry
from tllm_plugin.data.bundle import DataBundle


class DataSetLoader(Protocol):
    """Registered function that loads a data set; see `tllm_plugin.data.load_data` for the arguments."""

    def __call__(self, path: str, *, download: bool, image_size: int, num_workers: int, seed: int) -> DataBundle: ...


DATA_SETS: Registry[DataSetLoader] = Registry("data set")
