"""Remember choices per machine, as files in the user's cache folder."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tllm_plugin.core.errors import FileFormatError, TLLMError
from tllm_plugin.core.outputs import tensors_in
from tllm_plugin.runs.speed_file import SpeedRecord

logger = logging.getLogger(__name__)


def cache_folder() -> Path:
    """Return the folder for what can be made again: `TLLM_CACHE`, or `tllm-plugin` in the user's cache folder."""
    named = os.environ.get("TLLM_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(named) if named else Path(base) / "tllm-plugin"


def describe(distiller: nn.Module, kwargs: Mapping[str, Any]) -> str:
    """Return what a choice depends on: device, threads, versions, networks, method and batch."""
    device = next(distiller.parameters()).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    structure = hashlib.sha256(repr(distiller).encode()).hexdigest()[:16]
    shapes = "+".join("x".join(map(str, tensor.shape)) for tensor in tensors_in(dict(kwargs)))
    kind = type(distiller)
    return (
        f"{name}; {torch.get_num_threads()} threads; torch {torch.__version__}; {kind.__module__}.{kind.__qualname__}; "
        f"networks {structure}; batch {shapes}"
    )


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def remembered(measured_on: str) -> SpeedRecord | None:
    """Return what was chosen on this machine before, or None; a damaged file is told of and measured anew."""
    path = _path(measured_on)
    if not path.exists():
        return None
    try:
        found = SpeedRecord.read(path)
    except FileFormatError as error:
        logger.warning("speed: measuring again: %s", error)
        return None
    return found if found.measured_on == measured_on else None


def remember(record: SpeedRecord) -> None:
    """Write a choice for later runs on this machine; log why if that is not possible."""
    path = _path(record.measured_on)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        record.write(path)
    except (OSError, TLLMError) as error:
        logger.warning("speed: the choice is not remembered for this machine: %s", error)


def _path(measured_on: str) -> Path:
    return cache_folder() / "speed" / f"{hashlib.sha256(measured_on.encode()).hexdigest()[:16]}.json"
