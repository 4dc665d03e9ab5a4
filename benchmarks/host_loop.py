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
from functools import partial
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
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
    half = {"TLLM.DETECTOR.TYPE": "fixed", "TLLM.DETECTOR.CLASSES": list(range(50))}
    makers: dict[str, tuple[bool, str, dict[str, Any]]] = {
        "stock": (False, "off", {}),
        "off": (True, "off", {}),
        "half": (True, "off", half),
        "exact": (True, "exact", {}),
        "auto": (True, "auto", extra),
        "auto half": (True, "auto", {**extra, **half}),
    }
    made = {name: trainer(name, *makers[name]) for name in options.loops or makers}
    if "off" in made:
        _report_parts(made["off"], options.batch)
    return {name: turn(one) for name, one in made.items()}


def _report_parts(trainer: Any, rows: int) -> None:
    """Print the cost of scoring besides its forward passes, and the bound of a step with half the classes flagged."""
    session, distiller = trainer.tllm_session, trainer.tllm_session.wrapper.distiller
    with quiet():
        trainer.distiller.eval()
        seconds = []
        for call in (lambda: trainer._predict(session.scored_loader), lambda: trainer._catch_up(1)):
            session._teacher_predictions()  # Once per run.
            before = time.thread_time()
            call()
            seconds.append(time.thread_time() - before)
    flops = []
    for network in (distiller.student, distiller.teacher):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(torch.randn(rows, 3, 32, 32))
        flops.append(counter.get_total_flops())
    student, teacher = flops
    print(f"scoring {HELD_OUT} images: {seconds[0]:.3f} s of forward passes, {seconds[1] - seconds[0]:.3f} s besides")
    print(f"half of the classes flagged, bound by FLOPs: {(3 * student + teacher / 2) / (3 * student + teacher):.3f}")


class Marked:
    """The first batches of a loader; notes when each is asked for.

    Args:
        loader: The host's.
        count: Batches.
    """

    def __init__(self, loader: Any, count: int) -> None:
        self.loader, self.count = loader, count
        self.marks: list[tuple[float, float]] = []

    def __len__(self) -> int:
        return self.count

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["loader"], name)

    def __iter__(self) -> Iterator[Any]:
        self.marks = []
        for batch in islice(self.loader, self.count):
            yield batch
            self.marks.append((time.perf_counter(), time.thread_time()))

    def seconds(self) -> list[tuple[float, float]]:
        """Return the durations per batch of the last pass."""
        return [(after[0] - before[0], after[1] - before[1]) for before, after in pairwise(self.marks)]


def repdistiller_turns(options: argparse.Namespace, root: Path, folder: Path) -> dict[str, Turn]:
    """Return the turns of RepDistiller's `train_distill` with kd or hint: stock, and with TLLM at each speed."""
    os.chdir(folder)  # The host makes a folder `data` where it is.
    sys.path.insert(0, str(root))
    from dataset.cifar100 import get_cifar100_dataloaders
    from distiller_zoo import DistillKL, HintLoss
    from helper.loops import train_distill
    from models import model_dict
    from models.util import ConvReg

    from tllm_plugin.hosts.repdistiller import Run
    from tllm_plugin.hosts.repdistiller.flags import tllm_options

    hint = options.method == "hint"

    def turn(name: str) -> Turn:
        torch.manual_seed(0)
        flags = {str(option.flag): option.default for option in tllm_options().values()}
        speed = "off" if name == "stock" else name
        opt = argparse.Namespace(
            **{**flags, "tllm": True, "tllm_resume": False, "tllm_seed": None, "nesterov": None, "tllm_speed": speed},
            **{"distill": options.method, "hint_layer": 2, "kd_T": 4, "print_freq": 10**6, "epochs": options.epochs},
            **{"gamma": 1.0, "alpha": 0.0 if hint else 0.9, "beta": 100.0 if hint else 0.0},
            **{"save_folder": str(folder / name), "path_t": "", "dataset": "cifar100"},
        )
        opt.tllm_detector = "none"
        opt.tllm_holdout = HELD_OUT / (options.batch * options.batches + HELD_OUT)
        opt.tllm_views = options.views if name == "auto" else 0
        loader, test_loader, _ = get_cifar100_dataloaders(options.batch, options.workers, is_instance=True)
        teacher, student = (model_dict[key](num_classes=100) for key in (options.teacher, options.student))
        modules, trained = nn.ModuleList([student]), nn.ModuleList([student])
        if hint:
            with torch.no_grad():
                shapes = [
                    network(torch.randn(2, 3, 32, 32), is_feat=True)[0][2].shape for network in (student, teacher)
                ]
            modules.append(ConvReg(*shapes))
            trained.append(modules[-1])
        modules.append(teacher)
        last = HintLoss() if hint else DistillKL(4)
        criteria = nn.ModuleList([nn.CrossEntropyLoss(), DistillKL(4), last])
        optimizer = torch.optim.SGD(trained.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
        if name == "stock":
            marked = Marked(loader, options.batches)
            arguments = (1, marked, modules, criteria, optimizer, opt)
            step: Callable[[], Any] = partial(train_distill, *arguments)
        else:
            run = Run(opt, loader, test_loader)
            marked = run.train_loader = Marked(run.train_loader, options.batches)
            steps = CIFAR_IMAGES // options.batch
            marked.count = steps  # `auto` is told of a whole run.
            run.start(modules, criteria, optimizer)
            marked.count = options.batches
            step = partial(run.train, train_distill, 1, marked, modules, criteria, optimizer, opt)

        def measured() -> list[tuple[float, float]]:
            step()
            return marked.seconds()

        return measured

    return {name: turn(name) for name in options.loops or ("stock", "off", "exact", "auto")}


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
    parser.add_argument("--method", default="KD", help="KD and others of mdistiller's; of RepDistiller's kd or hint")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--batches", type=int, default=12, help="per turn")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--warm", type=int, default=1, help="turns that are not counted")
    parser.add_argument("--epochs", type=int, default=240, help="of the run that `auto` is told of")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--views", type=int, default=0)
    parser.add_argument("--loops", nargs="+", help="of stock, off, half, exact, auto, 'auto half'")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(options.threads)
    images, labels, names = read_images(options.images, options.batch * options.batches + HELD_OUT)
    stand_in(images, labels, names)
    make = {"mdistiller": mdistiller_turns, "repdistiller": repdistiller_turns}
    with tempfile.TemporaryDirectory() as folder:
        turns = make[options.host](options, locate(options.host), Path(folder))
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
