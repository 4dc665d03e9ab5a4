"""Apply `TLLM.SPEED` in any host: batches made on the device, and faster networks from the first step on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.host_session import HostSession
from tllm_plugin.speed.loader import on_device
from tllm_plugin.speed.machine import cache_folder
from tllm_plugin.speed.memory import MemoryPlace
from tllm_plugin.speed.steps import FirstStep

logger = logging.getLogger(__name__)


class RunSpeed:
    """The speed of one run.

    Args:
        node: `cfg.TLLM`.
        device: On which the run is trained.
        teacher: Path of the teacher's checkpoint, beside which its answers are remembered; empty: in the cache folder.
        several: Whether several processes or GPUs train it; then only batches are made faster.
    """

    def __init__(self, node: CfgNode, device: torch.device, *, teacher: str = "", several: bool = False) -> None:
        self.level = str(node.SPEED)
        self.views = int(node.VIEWS)
        self.device = device
        folder = Path(teacher).parent if teacher else cache_folder() / "answers"
        self.place = MemoryPlace(folder, int(node.MEMORY * 1e9)) if node.MEMORY else None
        self.several = several

    def loader(self, loader: Any) -> Any:
        """Return a loader of the same batches that makes them on the device, or the host's own."""
        if self.level == "off" or not isinstance(loader, DataLoader):
            return loader
        found, reason = on_device(loader, self.device, self.views)
        if reason and self.views:
            raise ConfigError(
                f"Expected a stock loader of CIFAR images for `TLLM.VIEWS` {self.views}, but the host's stays: {reason}"
            )
        if reason:
            logger.info("speed: the host's loader stays: %s", reason)
        else:
            logger.info("speed: batches are made on the %s%s", self.device, self._told_of_views())
        return found

    def _told_of_views(self) -> str:
        return f"; each image has {self.views} outcomes of the augmentation instead of all" if self.views else ""

    def start(self, session: HostSession, *, steps: int, optimizer: Any, resume: bool, shared: str = "") -> None:
        """Prepare the choice that is made in the first step; a resumed run continues with the recorded one.

        Args:
            session: Session of the run, with its folder.
            steps: Steps of the whole run.
            optimizer: The host's.
            resume: Whether the run continues.
            shared: Why the networks have to stay as they are; empty if they need not.
        """
        if self.level != "auto":
            return
        reason = shared or ("they are trained on several devices or in several processes" if self.several else "")
        if reason:
            logger.info("speed: the networks stay as they are: %s", reason)
            return
        run = session.run
        recorded = run.read_speed() if run is not None and resume and run.speed_json.exists() else None
        if run is not None and recorded is None:
            run.speed_json.unlink(missing_ok=True)  # Of an earlier run in this folder.
        FirstStep(
            session.wrapper,
            steps,
            optimizer=optimizer if isinstance(optimizer, torch.optim.Optimizer) else None,
            recorded=recorded,
            place=self.place,
            write=(lambda record: None) if run is None else run.write_speed,
        ).put_in()
