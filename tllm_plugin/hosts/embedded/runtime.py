"""Device, precision and determinism of a run."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts import processes


def choose_device(cfg: CfgNode) -> torch.device:
    """Return the device that `RUNTIME.DEVICE` names; each rank on a machine gets a GPU of its own.

    Raises:
        ConfigError: The device does not exist.
    """
    name = cfg.RUNTIME.DEVICE
    if processes.world_size() > 1:
        return _device_of_process(name)
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(f"Expected `RUNTIME.DEVICE` to be a device of this machine, but got {name!r}")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise ConfigError(f"Expected `RUNTIME.DEVICE` to be a device of this machine, but got {name!r}")
    return device


def autocast(cfg: CfgNode, device: torch.device) -> AbstractContextManager[Any]:
    """Return the context manager for forward passes with `RUNTIME.PRECISION`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if cfg.RUNTIME.PRECISION == "bfloat16" else nullcontext()


def _device_of_process(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise ConfigError(f"Expected `RUNTIME.DEVICE` to be auto, cpu or cuda for several processes, but got {name!r}")
    place = processes.local_rank()
    if place >= torch.cuda.device_count():
        raise ConfigError(
            f"Expected at most {torch.cuda.device_count()} processes on this machine, one for each GPU, but got one "
            f"numbered {place}; start fewer, or set RUNTIME.DEVICE to cpu"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)


_lock = threading.Lock()
_runs = 0
_before: dict[str, Any] = {}


@contextmanager
def reproducible(cfg: CfgNode) -> Iterator[None]:
    """Use PyTorch's deterministic algorithms in the block if `RUNTIME.DETERMINISTIC` is set and the device is a GPU.

    An operation without a deterministic algorithm causes a warning. The previous settings are restored after the last
    of several simultaneous runs, except the environment variable that cuBLAS reads on first use.

    Args:
        cfg: Config of the run.

    Raises:
        ConfigError: There is no such device.

    Source: "Reproducibility" in PyTorch's notes.
    """
    if not cfg.RUNTIME.DETERMINISTIC or choose_device(cfg).type != "cuda":
        yield
        return
    global _runs
    with _lock:
        if _runs == 0:
            _ask()
        _runs += 1
    try:
        yield
    finally:
        with _lock:
            _runs -= 1
            if _runs == 0:
                _take_back()


def _ask() -> None:
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    memory: Any = torch.utils.deterministic
    _before.update(
        mode=torch.get_deterministic_debug_mode(),
        benchmark=torch.backends.cudnn.benchmark,
        fill=memory.fill_uninitialized_memory,
    )
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False  # With benchmarking, the chosen algorithm may differ from run to run.
    # Filling uninitialised memory serves debugging only and costs an operation for each tensor.
    memory.fill_uninitialized_memory = False


def _take_back() -> None:
    memory: Any = torch.utils.deterministic
    # `set_deterministic_debug_mode` would not affect the compiler.
    torch.use_deterministic_algorithms(_before["mode"] > 0, warn_only=_before["mode"] == 1)
    torch.backends.cudnn.benchmark = _before["benchmark"]
    memory.fill_uninitialized_memory = _before["fill"]
