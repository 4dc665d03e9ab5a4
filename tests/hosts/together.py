"""What the tests of several processes run in each of them, and how they start them.

Weights are in double precision: the digits' networks are so sensitive at first that what float32 rounds differently
grows to tenths within three epochs. What is left is the arithmetic itself.
"""

from __future__ import annotations

import atexit
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from tests.distiller_cases import BUILDERS, NUM_CLASSES, networks, trained_parameters
from tests.hosts.digits_runs import CONFIG, make_config
from tllm_plugin.core.errors import TLLMError
from tllm_plugin.core.wrapper import TLLMWrapper
from tllm_plugin.data import in_memory
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.data import load_bundle
from tllm_plugin.hosts.embedded.distillers import distiller_dict
from tllm_plugin.hosts.embedded.distributed import ParallelDistiller, begin_epoch, merge_buffers, synchronise_batch_norm
from tllm_plugin.hosts.embedded.late_test import ensure_tested
from tllm_plugin.hosts.embedded.trainer import BaseTrainer
from tllm_plugin.runs.run_folder import RunFolder

ROOT = Path(__file__).resolve().parents[2]
ROWS = 23  # Not divisible: 12 and 11.
METHODS = ("KD", "AT", "FITNET", "SRRL", "CID", "CID_warmup", "SFTN", "NONE")
#: A naive rule that flags soon; batches that two processes cannot share equally, the last one of 9 rows. MIN_ROWS is
#: about the rows of one process.
JOB = (
    *("TLLM.MIN_ROWS", "1", "SOLVER.EPOCHS", "2"),
    *("SOLVER.BATCH_SIZE", "63", "DATASET.TEST.BATCH_SIZE", "50", "RUNTIME.SYNC_BATCHNORM", "True"),
    *("TLLM.DETECTOR.ETA", "0.01", "TLLM.DETECTOR.CONFIDENCE", "0", "TLLM.DETECTOR.SMOOTHING", "0"),
    *("RUNTIME.DEVICE", "cpu"),
)


def start(*words: str, folders: Sequence[Path]) -> list[subprocess.Popen[str]]:
    """Start `python words...` in each of some folders, as processes that find each other at a free port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    common = {**os.environ, "PYTHONPATH": path, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [
        subprocess.Popen(
            [sys.executable, *words],
            env={**common, "RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(len(folders))},
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number, folder in enumerate(folders)
    ]


@contextmanager
def doubles() -> Iterator[None]:
    """Let networks be made, and digits be read, in double precision."""
    normalise, dtype = in_memory.normalise, torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    in_memory.normalise = lambda *arguments: normalise(*arguments).double()
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        in_memory.normalise = normalise


def shared_config(prefix: Path, *options: str) -> CfgNode:
    """Return the config of a job, which names files that the main process alone may have."""
    return processes.from_main(lambda: make_config(prefix, *JOB, *options))


def interrupted(prefix: Path, epoch: int, *options: str) -> None:
    """Train a job and interrupt it in the middle of an epoch."""
    original = BaseTrainer.train_iter
    steps = [0]

    def train_iter(self: BaseTrainer, image: Tensor, target: Tensor, index: Tensor, now: int) -> Any:
        steps[0] += now == epoch
        if steps[0] == 4:
            raise KeyboardInterrupt
        return original(self, image, target, index, now)

    BaseTrainer.train_iter = train_iter  # type: ignore[method-assign]
    try:
        recipe.run(shared_config(prefix, *options))
    except KeyboardInterrupt:
        pass
    else:
        raise AssertionError("Expected the run to be interrupted")
    finally:
        BaseTrainer.train_iter = original  # type: ignore[method-assign]


def single_precision(folder: Path, prefix: str) -> None:
    """Train a student in single precision, with a teacher and a reference that are there."""
    below = folder / "alone/digits"
    teacher, vanilla = processes.from_main(
        lambda: [next(below.glob(f"{role}-*")) for role in ("teacher", "vanilla")],
    )
    given = ("DISTILLER.TEACHER_CHECKPOINT", str(teacher / "student_latest"), "TLLM.DETECTOR.REFERENCE", str(vanilla))
    recipe.run(shared_config(folder / prefix, *given, "SOLVER.LR", "0.05", "EXPERIMENT.NAME", "single"))


#: Class -> teaching weight below 1.
UNTAUGHT: dict[str, dict[int, float]] = {
    "none": {},
    "one": dict.fromkeys([3], 0),
    "two": dict.fromkeys([3, 8], 0),
    "all": dict.fromkeys(range(10), 0),
    "less": {3: 0.4, 5: 0.9},
    "less and two": {2: 0.2, 3: 0, 5: 0.9, 8: 0},
}


class Network(nn.Module):
    """No BatchNorm."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.Tanh(), nn.Linear(width, 10))

    def forward(self, image: Tensor) -> tuple[Tensor, dict[str, Any]]:
        return self.layers(image), {}


def steps(folder: Path, accumulate: int, untaught: dict[int, float]) -> dict[str, Tensor]:
    """Return a student's weights after three steps with momentum; the second half of every batch is of class 3.

    Args:
        folder: To write into.
        accumulate: Parts of a batch.
        untaught: Class -> teaching weight below 1.
    """
    cfg = make_config(folder / f"steps-{accumulate}-{len(untaught)}", "SOLVER.ACCUMULATE", str(accumulate))
    torch.manual_seed(0)
    student, teacher = Network(8), Network(16).eval()
    wrapper = TLLMWrapper(distiller_dict["KD"](student, teacher, cfg), 10, ce_weight=2.0, min_rows=1)
    wrapper.set_teaching_weights([float(untaught.get(index, 1.0)) for index in range(10)])
    trainer = BaseTrainer("x/y", wrapper, [0] * 3, [], cfg)
    wrapper.train()
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        image = torch.randn(ROWS, 1, 8, 8, generator=generator)
        target = torch.cat([torch.randint(10, (12,), generator=generator), torch.full((11,), 3)])
        trainer.parallel.begin_batch(ROWS if processes.world_size() > 1 else None)
        shared = (processes.shard().rows_of([item])[0] for item in (image, target, torch.arange(ROWS)))
        trainer.train_iter(*shared, 1)
    return dict(student.state_dict())


def method_steps(name: str) -> dict[str, Any]:
    """Train a method for an epoch in which some process has no row with a teacher; return what it came to."""
    distiller = BUILDERS[name](*networks())
    distiller.student = synchronise_batch_norm(distiller.student, torch.device("cpu"))
    wrapper = TLLMWrapper(distiller, NUM_CLASSES, min_rows=2).train()
    parallel = ParallelDistiller(wrapper)
    optimizer = torch.optim.SGD(wrapper.get_learnable_parameters(), lr=0.01)
    begin_epoch(wrapper, 0, 5)
    generator = torch.Generator().manual_seed(processes.rank())
    # Of all rows, of none here or there, of one row (fewer than `min_rows`), and of some.
    less = dict.fromkeys([0, 1], 0.5) if wrapper.teacher is not None else {}
    flags: list[dict[int, float]] = [dict.fromkeys(f, 0.0) for f in ([], [0], [1], range(2, NUM_CLASSES), [0, 5])]
    for untaught in (*flags, less):
        wrapper.set_teaching_weights([untaught.get(index, 1.0) for index in range(NUM_CLASSES)])
        target = torch.full((6,), processes.rank())
        target[-1 if len(untaught) > 3 else 6 :] = 2
        parallel.begin_batch(12)
        optimizer.zero_grad()
        _, losses = parallel(image=torch.randn(6, 1, 8, 8, generator=generator), target=target, epoch=5)
        torch.stack([loss.mean() for loss in losses.values()]).sum().backward()
        parallel.drop_held()
        trained = {id(parameter) for parameter in trained_parameters(wrapper)}
        assert (len(trained) < len(wrapper.get_learnable_parameters())) == (name == "CID_warmup")
        for parameter in wrapper.get_learnable_parameters():
            assert (parameter.grad is not None) == (id(parameter) in trained)
        optimizer.step()
    before = {key: value.clone() for key, value in wrapper.named_buffers()}
    merge_buffers(wrapper)
    state = {key: value.clone() for key, value in wrapper.state_dict().items() if isinstance(value, Tensor)}
    begin_epoch(wrapper, 0, 6)
    return {"before": before, "state": state, "context": getattr(wrapper.student, "context", torch.zeros(())).clone()}


def held_steps(folder: Path) -> dict[str, bool]:
    """Take steps of CID's warm-up; return whether its context head and another layer are as they were, and unmoved."""
    torch.manual_seed(0)
    wrapper: Any = TLLMWrapper(BUILDERS["CID_warmup"](*networks()), NUM_CLASSES).train()
    trainer = BaseTrainer("x/y", wrapper, [0] * 3, [], make_config(folder / "held"))
    layers = {"held": wrapper.student.context_head, "trained": wrapper.distiller.regressor}
    before = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    begin_epoch(wrapper, 0, 1)
    for _ in range(3):
        trainer.parallel.begin_batch(12 * processes.world_size())
        trainer.train_iter(torch.randn(12, 1, 8, 8), torch.arange(12) % NUM_CLASSES, torch.arange(12), 1)
    return {
        name: torch.equal(layer.weight, before[name]) and layer.weight not in trainer.optimizer.state
        for name, layer in layers.items()
    }


def norms() -> dict[str, Tensor]:
    """Return what BatchNorm gives for this process's rows of a batch, forwards and backwards, and what it keeps."""
    generator = torch.Generator().manual_seed(2)
    whole = torch.randn(7, 3, 2, 2, generator=generator) * 5 + 40
    layer = nn.BatchNorm2d(3)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([1.0, -2.0, 0.5]))
        layer.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    layer = synchronise_batch_norm(layer, torch.device("cpu"))  # type: ignore[assignment]
    rows = processes.shard().rows_of([whole])[0].clone().requires_grad_()
    output = layer(rows)
    weights = processes.shard().rows_of([torch.randn(whole.shape, generator=generator)])[0]
    (output * weights).sum().backward()
    gradients = {name: processes.summed(p.grad) for name, p in layer.named_parameters() if p.grad is not None}
    return {"output": output.detach(), "rows": rows.grad, **gradients, **dict(layer.named_buffers())}  # type: ignore[dict-item]


def disagreement(*values: int) -> str:
    """Return what is said of values that are not the same in all processes."""
    try:
        processes.check_same("what was computed", torch.tensor(values))
    except TLLMError as error:
        return str(error)
    return ""


def everything(folder: Path) -> None:
    """Do all of the above, and write down what came of it."""
    number = processes.rank()
    found: dict[str, Any] = {"norms": norms(), "methods": {name: method_steps(name) for name in METHODS}}
    found["held"] = held_steps(folder / "together")
    found["disagreements"] = [disagreement(7, number), disagreement(7, 8)]
    found["steps"] = {
        (parts, name): steps(folder / "together", parts, untaught)
        for parts in (1, 4)
        for name, untaught in UNTAUGHT.items()
    }
    single_precision(folder, "together")
    with doubles():
        recipe.run(shared_config(folder / "together"))
        interrupted(folder / "together", 2, "EXPERIMENT.NAME", "ends alone")
        # Was begun by one process.
        ends = ("EXPERIMENT.NAME", "ends together")
        recipe.run(shared_config(folder / "alone", *ends, "LOG.TEST_FREQ", "-1"), resume=True)
        run = RunFolder.inside(folder / "alone/digits/ends together")
        assert not processes.from_main(lambda: run.read_metrics().tested or run.predictions_npz.exists())
        ensure_tested(run, shared_config(folder / "alone", *ends), load_bundle(shared_config(folder / "alone")))
    torch.save(found, folder / f"found-{number}")


def run_then_fail(folder: Path) -> int:
    """Do `everything` in the place of a command's job, then train with a loss that is not finite in process 1."""
    from tllm_plugin.cli import main

    train_iter, run = BaseTrainer.train_iter, recipe.run

    def spoilt(self: BaseTrainer, image: Tensor, target: Tensor, index: Tensor, now: int) -> Any:
        return train_iter(self, image * (torch.nan if processes.rank() == 1 else 1.0), target, index, now)

    def replaced(*arguments: Any, **how: Any) -> RunFolder:
        recipe.run = run
        everything(folder)
        if processes.rank() == 0:
            atexit.register(os.abort)  # As threads of PyTorch now and then do where another process has failed.
        BaseTrainer.train_iter = spoilt  # type: ignore[method-assign]
        return run(*arguments, **how)

    recipe.run = replaced
    vanilla = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none", "RUNTIME.DEVICE", "cpu")
    return main(["train", "--cfg", str(CONFIG), "LOG.PREFIX", str(folder / "failed"), "EXPERIMENT.NAME", "x", *vanilla])


def report(run: RunFolder) -> dict[str, bytes]:
    """Return files that do not depend on who made the run."""
    names = ("curves_npz", "flags_json", "split_json", "predictions_npz")
    # But for where the reference lies, and the digest, which depends on that.
    place, digest = rb'"[^"]*/vanilla-', rb'"digest": "\w*"'
    files = {name: getattr(run, name).read_bytes() for name in names}
    return {name: re.sub(digest, b"", re.sub(place, b'"vanilla-', content)) for name, content in files.items()}


if __name__ == "__main__":
    sys.exit(run_then_fail(Path()))
