"""What a training step of CID costs compared with one of KD: same networks, batch and optimizer, the two taking turns.

    python benchmarks/cid_step.py --teacher resnet56 --student resnet20 --rounds 20

Forward, backward and optimizer step on a batch that is in memory; no data loading. Each round times both, in the order
KD, CID and then CID, KD, so that a drift of the machine hits both alike. Printed and written as JSON: milliseconds per
step as mean and standard deviation over rounds, and the ratio as the median of the rounds' ratios with its range.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from tllm_plugin.methods import CID, KD, Distiller
from tllm_plugin.models import create_model, head


def make_networks(options: argparse.Namespace) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return create_model(options.student, options.classes), create_model(options.teacher, options.classes)


def make_kd(options: argparse.Namespace) -> Distiller:
    return KD(*make_networks(options), temperature=4.0, ce_weight=0.1, kd_weight=0.9)


def make_cid(options: argparse.Namespace) -> Distiller:
    student, teacher = make_networks(options)
    return CID(
        student,
        teacher,
        num_classes=options.classes,
        student_dim=head(student).in_features,
        teacher_dim=head(teacher).in_features,
        warmup_epochs=1,
    )


class Stepper:
    """Makes training steps with one distiller; CID is past its first epochs, so that all of it runs."""

    def __init__(self, make: Callable[[argparse.Namespace], Distiller], options: argparse.Namespace) -> None:
        self.device = torch.device(options.device)
        self.distiller = make(options).to(self.device).train()
        self.optimizer = torch.optim.SGD(self.distiller.get_learnable_parameters(), lr=1e-4, momentum=0.9)
        generator = torch.Generator().manual_seed(1)
        self.image = torch.randn(options.batch, 3, options.size, options.size, generator=generator).to(self.device)
        self.target = torch.randint(options.classes, (options.batch,), generator=generator).to(self.device)
        for epoch in (1, 2, 2):
            self.step(epoch)

    def step(self, epoch: int = 2) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        _, losses = self.distiller(image=self.image, target=self.target, epoch=epoch)
        total: Tensor = torch.stack(list(losses.values())).sum()
        total.backward()
        self.optimizer.step()

    def seconds(self, steps: int) -> float:
        self.wait()
        started = time.perf_counter()
        for _ in range(steps):
            self.step()
        self.wait()
        return (time.perf_counter() - started) / steps

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", default="resnet56")
    parser.add_argument("--student", default="resnet20")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--steps", type=int, default=3, help="per round and method")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", type=Path, help="write the numbers there, too")
    options = parser.parse_args()
    kd, cid = Stepper(make_kd, options), Stepper(make_cid, options)
    times: dict[str, list[float]] = {"kd": [], "cid": []}
    for number in range(options.rounds):
        order = [("kd", kd), ("cid", cid)]
        for name, stepper in order if number % 2 == 0 else reversed(order):
            times[name].append(stepper.seconds(options.steps))
    ratios = [ours / theirs for ours, theirs in zip(times["cid"], times["kd"], strict=True)]
    pair = f"{options.teacher}/{options.student}, batch {options.batch}, {options.size} px, {options.classes} classes"
    print(
        f"{pair}; {options.rounds} rounds of {options.steps} steps each on {options.device}, torch {torch.__version__}"
    )
    for name, values in times.items():
        mean, spread = 1e3 * statistics.mean(values), 1e3 * statistics.stdev(values)
        print(f"{name:3} {mean:8.1f} +- {spread:.1f} ms per step")
    print(f"CID / KD: {statistics.median(ratios):.3f} (median; {min(ratios):.3f} to {max(ratios):.3f})")
    if options.json:
        result = {
            "what": pair,
            "rounds": options.rounds,
            "steps": options.steps,
            "device": options.device,
            "torch": torch.__version__,
            "machine": platform.machine(),
            "threads": torch.get_num_threads(),
            "seconds_per_step": times,
            "ratio_median": statistics.median(ratios),
        }
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
