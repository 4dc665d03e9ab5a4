"""A user's script for several ranks: `python rank_job.py FOLDER STOP...` trains up to each epoch in turn, 0: the last.

Every part begins with a session of its own, as a process does that was started again.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from tests.own_loop.digits import FLAGGING, digits, kd
from tllm_plugin import Session


def part(folder: Path, stop: int, wrap_before: bool) -> None:
    torch.manual_seed(0 if not (folder / "run").exists() else 123)
    train_set = digits("train")
    distiller = DistributedDataParallel(kd()) if wrap_before else kd()
    # `imitation` needs no reference, and all that is compared with is flagged soon under the naive rule.
    options = {**FLAGGING, "detector": "teaching_curve"}
    session = Session(distiller, train_set, epochs=3, run=folder / "run", **options)
    model = session.distiller if wrap_before else DistributedDataParallel(session.distiller)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05, momentum=0.9)
    loader = session.loader(batch_size=50, shuffle=True, with_index=True)
    seen: list[int] = []
    for epoch in session.epochs():
        seen.clear()
        for image, target, index in loader:
            _, losses = model(image=image, target=target)
            optimizer.zero_grad()
            sum(losses.values()).backward()
            optimizer.step()
            seen += index.tolist()
        session.end_epoch(optimizer=optimizer)
        if epoch == stop:
            return
    predictions = session.finish(digits("test"))
    torch.save(
        {
            "student": model.module.student.state_dict(),
            "prediction": predictions.prediction,
            "flags": session.flags,
            "curves": session.curves.state_dict(),
            "seen": seen,
            "rng": torch.get_rng_state(),
        },
        folder / f"rank{dist.get_rank()}.pt",
    )


if __name__ == "__main__":
    dist.init_process_group("gloo")
    for stop in sys.argv[2:]:
        part(Path(sys.argv[1]), int(stop), wrap_before=sys.argv[2] != "0")
    dist.destroy_process_group()
