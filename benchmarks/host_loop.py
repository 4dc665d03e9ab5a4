"""Time a host's own training loop, stock against TLLM with `SPEED: auto`, on real images, as ratios.

    python benchmarks/host_loop.py --host mdistiller --images tiny-imagenet-32 --out host_loop.json

Both loops run in one process, in turn (A B A B ...), with the host's own step, loader and method. Each turn is a small
epoch; the time of a batch counts from the first batch on. Medians over the turns. The images of a folder stand in for
CIFAR-100: they are what the host's data set class holds in memory. RepDistiller: `--host repdistiller --method hint`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torchvision.datasets import CIFAR100

from tllm_plugin.hosts.checkouts import locate

#: Training images of the run that `auto` is told of.
CIFAR_IMAGES = 50_000
#: Images that are set aside, at least 5 of each class.
HELD_OUT = 800

#: Returns the seconds of each batch of a turn, and those of the main thread on a CPU.
Turn = Callable[[], list[tuple[float, float]]]


def read_images(folder: Path, count: int) -> tuple[np.ndarray, list[int], list[str]]:
    """Return `count` images (N, 32, 32, 3), evenly from all classes, with labels and class names."""
    names = sorted(path.name for path in (folder / "train").iterdir() if path.is_dir())
    each = -(-count // len(names))
    files = [path for name in names for path in sorted((folder / "train" / name).iterdir())[:each]]
    images = np.stack([np.asarray(Image.open(path).convert("RGB").resize((32, 32))) for path in files])
    return images, [names.index(path.parent.name) for path in files], names


def stand_in(images: np.ndarray, labels: list[int], names: list[str]) -> None:
    """Let torchvision's CIFAR100, and what hosts derive from it, hold these images."""

    def init(
        self: Any, root: Any = "", train: bool = True, transform: Any = None, target_transform: Any = None, **_: Any
    ):
        self.root, self.train, self.transform, self.target_transform = root, train, transform, target_transform
        self.data, self.targets, self.classes = images, list(labels), list(names)
        self.class_to_idx = {name: index for index, name in enumerate(names)}

    CIFAR100.__init__ = init  # type: ignore[method-assign]


def timed(batches: Iterable[Any], step: Callable[[Any], Any]) -> list[tuple[float, float]]:
    """Return the durations per batch, loading included, without the first batch, which waits for worker processes."""
    marks = []
    for batch in batches:
        step(batch)
        marks.append((time.perf_counter(), time.thread_time()))
    return [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(marks)]


def mdistiller_turns(options: argparse.Namespace, root: Path, folder: Path) -> dict[str, Turn]:
    """Return the turns of mdistiller's `BaseTrainer` with KD: stock, and with TLLM at each speed."""
    sys.path.insert(0, str(root))
    from tllm_plugin.hosts.mdistiller.compat import apply_compat

    apply_compat()
    import mdistiller.engine.trainer as engine
    from mdistiller.dataset import get_dataset
    from mdistiller.distillers import distiller_dict
    from mdistiller.engine.cfg import CFG
    from mdistiller.engine.utils import AverageMeter
    from mdistiller.models import cifar_model_dict

    import tllm_plugin.hosts.mdistiller  # noqa: F401

    def trainer(name: str, on: bool, speed: str, extra: dict[str, Any]) -> Any:
        torch.manual_seed(0)
        cfg = CFG.clone()
        given = {
            "DATASET.NUM_WORKERS": options.workers,
            "SOLVER.BATCH_SIZE": options.batch,
            "SOLVER.EPOCHS": options.epochs,
            "LOG.PREFIX": str(folder),
            "LOG.WANDB": False,
            "DISTILLER.TYPE": options.method,
            "TLLM.ON": on,
            "TLLM.SPEED": speed,
            "TLLM.HOLDOUT.FRACTION": HELD_OUT / (options.batch * options.batches + HELD_OUT),
            "TLLM.DETECTOR.TYPE": "none",
            **extra,
        }
        cfg.merge_from_list([word for item in given.items() for word in item])
        loader, test_loader, _, classes = get_dataset(cfg)
        teacher, student = (cifar_model_dict[key][0](num_classes=classes) for key in (options.teacher, options.student))
        if options.weights:
            teacher.load_state_dict(torch.load(options.weights, weights_only=True)["model"])
        distiller = nn.DataParallel(distiller_dict[options.method](student, teacher, cfg))
        made = engine.trainer_dict["base"] if hasattr(engine, "trainer_dict") else engine.BaseTrainer
        trainer = made(name, distiller, loader, test_loader, cfg)
        if on:  # What `train` does before the host's loop.
            steps = CIFAR_IMAGES // options.batch * options.epochs
            trainer.tllm_speed.start(trainer.tllm_session, steps=steps, optimizer=trainer.tllm_optimizer, resume=False)
        return trainer

    def turn(trainer: Any, epoch: int = 1) -> Turn:
        names = ("training_time", "data_time", "losses", "top1", "top5")

        def run() -> list[tuple[float, float]]:
            meters = {name: AverageMeter() for name in names}
            trainer.distiller.train()
            return timed(
                islice(trainer.train_loader, options.batches), lambda data: trainer.train_iter(data, epoch, meters)
            )

        return run

    extra = {"TLLM.VIEWS": options.views} if options.views else {}
    return {
        "stock": turn(trainer("stock", False, "off", {})),
        "off": turn(trainer("off", True, "off", {})),
        "exact": turn(trainer("exact", True, "exact", {})),
        "auto": turn(trainer("auto", True, "auto", extra)),
    }


@contextmanager
def quiet() -> Iterator[None]:
    """Discard what the hosts print for every batch."""
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def commit() -> str:
    found = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--host", choices=["mdistiller", "repdistiller"], default="mdistiller")
    parser.add_argument("--images", type=Path, required=True, help="image folder with train/CLASS/...")
    parser.add_argument("--teacher", default="resnet32x4")
    parser.add_argument("--student", default="resnet8x4")
    parser.add_argument("--weights", help="checkpoint of the teacher; default: random weights")
    parser.add_argument("--method", default="KD", help="the host's name of the method")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=12, help="per turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--warm", type=int, default=1, help="turns that are not counted")
    parser.add_argument("--epochs", type=int, default=240, help="of the run that `auto` is told of")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--views", type=int, default=0)
    parser.add_argument("--loops", nargs="+", help="which loops; default: all")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    images, labels, names = read_images(options.images, options.batch * options.batches + HELD_OUT)
    stand_in(images, labels, names)
    with tempfile.TemporaryDirectory() as folder:
        turns = {"mdistiller": mdistiller_turns}[options.host](options, locate(options.host), Path(folder))
        if options.loops:
            turns = {name: turn for name, turn in turns.items() if name in options.loops}
        seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in turns}
        for number in range(options.warm + options.turns):
            for name, turn in turns.items():
                with quiet():
                    found = turn()
                if number >= options.warm:
                    seconds[name] += found
    medians = {name: np.median(np.array(found), axis=0) for name, found in seconds.items()}
    first = next(iter(medians.values()))
    print(f"{options.host} {options.method} {options.teacher} -> {options.student}, batch {options.batch}, {commit()}")
    for name, median in medians.items():
        low, high = np.quantile(np.array(seconds[name])[:, 0], [0.25, 0.75]) * 1000
        wall, own = median * 1000
        print(
            f"{name}: {wall:.1f} ms per batch (quartiles {low:.1f}, {high:.1f}), {first[0] / median[0]:.2f} x; "
            f"CPU time of the main thread {own:.1f} ms, {first[1] / median[1]:.2f} x"
        )
    if options.out:
        what = {key: str(value) for key, value in vars(options).items()}
        options.out.write_text(json.dumps({"commit": commit(), "options": what, "seconds": seconds}, indent=1) + "\n")


if __name__ == "__main__":
    main()
