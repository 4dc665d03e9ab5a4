"""Which device a process computes on."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts import processes


def choose_device(cfg: CfgNode) -> torch.device:
    """Return the device that `RUNTIME.DEVICE` names; of several processes of a machine each has a GPU of its own.

    Raises:
        ConfigError: There is no such device.
    """
    name = cfg.RUNTIME.DEVICE
    if processes.count() > 1:
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
    """Return the context of a forward pass in the precision of `RUNTIME.PRECISION`."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if cfg.RUNTIME.PRECISION == "bfloat16" else nullcontext()


def _device_of_process(name: str) -> torch.device:
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name not in ("auto", "cuda"):
        raise ConfigError(f"Expected `RUNTIME.DEVICE` to be auto, cpu or cuda for several processes, but got {name!r}")
    place = processes.place_on_machine()
    if place >= torch.cuda.device_count():
        raise ConfigError(
            f"Expected at most {torch.cuda.device_count()} processes on this machine, one for each GPU, but got one "
            f"numbered {place}; start fewer, or set RUNTIME.DEVICE to cpu"
        )
    torch.cuda.set_device(place)
    return torch.device("cuda", place)
