"""A host of the forks' shape in a process of its own, started with the words of `tllm train --host mdistiller`."""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import replace
from pathlib import Path

import torch
import yaml
from torch import nn
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from tests.distiller_cases import TwoView, networks
from tests.hosts.fork_shaped_host import HOST, Images, Ours, one_view, two_views
from tllm_plugin.hosts.factories import make_trainer_factory

# Environment variables that name an epoch: one that is saved, but not said, because the process is interrupted in
# between; one after which it waits to be stopped.
INTERRUPTED_IN, WAITING_AFTER = "MINIATURE_INTERRUPTED_IN", "MINIATURE_WAITING_AFTER"
SECONDS_OF_WAITING = 60


class Saving(Ours):
    """Saves and resumes as mdistiller does: before an epoch is scored, without the random numbers' state."""

    def train(self, resume: bool = False) -> None:
        begin, latest = 1, Path(self.log_path) / "latest"
        if resume:
            state = torch.load(latest, weights_only=True)
            self.distiller.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            begin = state["epoch"] + 1
        for epoch in range(begin, self.cfg.SOLVER.EPOCHS + 1):
            self.train_epoch(epoch)

    def train_epoch(self, epoch: int) -> None:
        super().train_epoch(epoch)
        state = {"epoch": epoch, "model": self.distiller.state_dict(), "optimizer": self.optimizer.state_dict()}
        for name in ("latest", f"epoch_{epoch}"):
            torch.save(state, Path(self.log_path) / name)
        if os.environ.get(INTERRUPTED_IN) == str(epoch):
            raise KeyboardInterrupt
        print(f"epoch {epoch}", flush=True)
        if os.environ.get(WAITING_AFTER) == str(epoch):
            time.sleep(SECONDS_OF_WAITING)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command")
    parser.add_argument("--host")
    parser.add_argument("--cfg")
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()
    cfg = CfgNode(yaml.safe_load(Path(options.cfg).read_text()))
    torch.manual_seed(0)
    # A run is compared with another one; a GPU would add up in any order.
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    torch.use_deterministic_algorithms(True, warn_only=True)
    distiller = nn.DataParallel(TwoView(*networks()))
    loaders = [DataLoader(Images(views), batch_size=24, shuffle=views is two_views) for views in (two_views, one_view)]
    factory = make_trainer_factory(replace(HOST, trainers={"ours": Saving}, carries_rng=True))
    trainer = factory(f"{cfg.EXPERIMENT.PROJECT}/{cfg.EXPERIMENT.NAME}", distiller, *loaders, cfg)
    trainer.train(resume=options.resume)


if __name__ == "__main__":
    main()
