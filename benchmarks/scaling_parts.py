"""What `scaling.py` measures: one epoch's scoring and its files, the reduction over ranks, checkpoints, trials."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor

from tllm_plugin import Curves, Predictions, create_detector, predict
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.defaults import default_config
from tllm_plugin.hosts.session_records import flags_record
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.optuna_study import SharedStudy
from tllm_plugin.search.space import ETA, Dimension

FEATURES = 64
BATCH = 256
#: Bytes that travel per hold-out sample: rank and probability of the true class, agreement.
BYTES_PER_SAMPLE = 3


@dataclass(frozen=True)
class EpochCost:
    """Of one epoch on one process, without the forward passes.

    Args:
        classes: C.
        samples: n, of the hold-out.
        epochs: E, recorded so far.
        score_seconds: Ranks, probabilities and predictions from n x C logits, CPU time.
        update_seconds: `Curves.append` and the detector, CPU time, the mean over the epochs.
        curves_seconds: Writing curves.npz after E epochs, CPU time.
        flags_seconds: Writing flags.json, CPU time.
        curves_bytes: Size of curves.npz.
        flags_bytes: Size of flags.json.
        history_bytes: Of the curves in memory.
        state_bytes: Of the detector in memory.
    """

    classes: int
    samples: int
    epochs: int
    score_seconds: float
    update_seconds: float
    curves_seconds: float
    flags_seconds: float
    curves_bytes: int
    flags_bytes: int
    history_bytes: int
    state_bytes: int


def epoch_cost(classes: int, per_class: int, epochs: int, repeats: int) -> EpochCost:
    """Measure one size on random scores: three samples of four right, detector `reference` against another such run."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)
    samples = len(labels)
    pool = [_random_scores(labels, classes, generator) for _ in range(4)]
    reference, curves = (Curves(labels, classes, torch.arange(samples)) for _ in range(2))
    for epoch in range(1, epochs + 1):
        reference.append(epoch, pool[(epoch + 1) % len(pool)])
    detector = create_detector("reference", classes, reference=reference, total_epochs=epochs, warmup_epochs=0)

    def follow() -> None:
        for epoch in range(1, epochs + 1):
            curves.append(epoch, pool[epoch % len(pool)])
            detector.update(epoch, curves.samples_at(epoch))

    update_seconds = cpu_seconds(follow, 1) / epochs
    names = [f"n{index:08d}" for index in range(classes)]
    node = default_config().TLLM
    with tempfile.TemporaryDirectory() as folder:
        run = RunFolder.inside(folder).create()
        curves_seconds = cpu_seconds(lambda: run.write_curves(curves.state_dict()), repeats)
        flags_seconds = cpu_seconds(lambda: run.write_flags(flags_record(detector, node, names, epochs)), repeats)
        sizes = run.curves_npz.stat().st_size, run.flags_json.stat().st_size
    head = torch.randn(FEATURES, classes, generator=generator)
    shown = labels[torch.randperm(samples, generator=generator)[: 4 * BATCH]]
    batches = [(torch.randn(len(y), FEATURES, generator=generator) @ head, y) for y in shown.split(BATCH)]
    score_seconds = cpu_seconds(lambda: predict(lambda logits: logits, batches), repeats)
    return EpochCost(
        classes=classes,
        samples=samples,
        epochs=epochs,
        score_seconds=score_seconds / len(shown) * samples,
        update_seconds=update_seconds,
        curves_seconds=curves_seconds,
        flags_seconds=flags_seconds,
        curves_bytes=sizes[0],
        flags_bytes=sizes[1],
        history_bytes=nbytes(curves.state_dict()),
        state_bytes=nbytes(detector.state_dict()),
    )


def cpu_seconds(call: Callable[[], Any], repeats: int) -> float:
    """Return the least CPU time of this process among `repeats` calls."""
    times = []
    for _ in range(repeats):
        started = time.process_time()
        call()
        times.append(time.process_time() - started)
    return min(times)


def nbytes(state: Any) -> int:
    """Return the bytes of all tensors in a state dict."""
    if isinstance(state, Tensor):
        return state.numel() * state.element_size()
    return sum(map(nbytes, state.values())) if isinstance(state, dict) else 0


def _random_scores(labels: Tensor, classes: int, generator: torch.Generator) -> Predictions:
    rank = torch.randint(2, 8, labels.shape, generator=generator).to(torch.uint8)
    rank[torch.rand(labels.shape, generator=generator) < 0.75] = 1
    return Predictions(
        labels=labels,
        prediction=torch.where(rank == 1, labels, -1),
        num_classes=classes,
        rank=rank,
        true_prob=torch.rand(labels.shape, generator=generator),
        agree=torch.rand(labels.shape, generator=generator) < 0.8,
    )


@dataclass(frozen=True)
class RankCost:
    """Of one epoch over several processes.

    Args:
        ranks: R.
        samples: n.
        score_seconds: CPU time of the slowest rank for its n / R samples.
        gather_seconds: Wall-clock time of the reduction, the least of several.
        equal: Whether what every rank has then equals what one process has, sample by sample.
    """

    ranks: int
    samples: int
    score_seconds: float
    gather_seconds: float
    equal: bool


def rank_cost(ranks: int, classes: int, per_class: int, repeats: int) -> RankCost:
    """Measure scoring on `ranks` gloo processes that each take every R-th sample, and the reduction."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_rank, args=(ranks, classes, per_class, repeats, folder), nprocs=ranks)
        found = [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(ranks)]
    return RankCost(
        ranks=ranks,
        samples=classes * per_class,
        score_seconds=max(item["score"] for item in found),
        gather_seconds=max(item["gather"] for item in found),
        equal=all(item["equal"] for item in found),
    )


def _rank(rank: int, ranks: int, classes: int, per_class: int, repeats: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(classes).repeat_interleave(per_class)
    features = torch.randn(len(labels), FEATURES, generator=generator)
    head = torch.randn(FEATURES, classes, generator=generator)
    features += 2 * head.t()[labels] / FEATURES**0.5
    mine = torch.arange(rank, len(labels), ranks)
    # As many rows on every rank, so that they fit into one tensor; what is too much is cut off again.
    rows = -(-len(labels) // ranks)

    def scored(indices: Tensor) -> Tensor:
        batches = [(features[i], labels[i]) for i in indices.split(BATCH)]
        found = predict(lambda image: image @ head, batches).beside((labels[indices] + 1) % classes)
        assert found.agree is not None
        return torch.stack(
            [
                found.kept("rank"),
                (found.kept("true_prob") * 255).round().to(torch.uint8),
                found.agree.to(torch.uint8),
            ],
            1,
        )

    part = torch.zeros(rows, BYTES_PER_SAMPLE, dtype=torch.uint8)
    parts = [torch.zeros_like(part) for _ in range(ranks)]
    score = cpu_seconds(lambda: part[: len(mine)].copy_(scored(mine)), repeats)
    times = []
    for _ in range(10 * repeats):
        dist.barrier()
        started = time.perf_counter()
        dist.all_gather(parts, part)
        times.append(time.perf_counter() - started)
    # Sample i lies on rank i % R at place i // R.
    together = torch.stack(parts, 1).flatten(0, 1)[: len(labels)]
    result = {"score": score, "gather": min(times), "equal": bool(together.equal(scored(torch.arange(len(labels)))))}
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


@dataclass(frozen=True)
class TrialCost:
    """Of a search's storage, without training.

    Args:
        trials: N.
        storage: "sqlite" or "journal".
        bytes: Of the storage after N trials.
        seconds_per_trial: Wall-clock time of the last trials.
    """

    trials: int
    storage: str
    bytes: int
    seconds_per_trial: float


def trial_cost(trials: int, kind: str) -> TrialCost:
    """Run a study of `trials` trials that train nothing, over eta and CE_WEIGHT."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "storage"
        storage = f"sqlite:///{path}" if kind == "sqlite" else f"journal:{path}"
        space = (Dimension(ETA, low=0.01, high=0.2, log=True), Dimension("TLLM.CE_WEIGHT", low=0.5, high=8.0))
        study = SharedStudy(storage, Path(folder) / "search", space, trials)
        times = [time.perf_counter()]

        def train(values: Any, trial: Any) -> float:
            times.append(time.perf_counter())
            return sum(float(value) for value in values.values())

        study.work(train)
        last = times[-min(20, trials) - 1 :]
        seconds = (last[-1] - last[0]) / (len(last) - 1)
        size = sum(file.stat().st_size for file in Path(folder).glob("storage*"))
    return TrialCost(trials, kind, size, seconds)


@dataclass(frozen=True)
class CheckpointCost:
    """Of the checkpoints that trials start from: one per epoch under `--checkpoint-every 1`.

    Args:
        bytes: Size of `epoch_E` for E = 1, 2, ...
        samples: n, of the hold-out.
        network_bytes: Parameters and buffers of student and teacher, and the optimizer's momenta of the student.
    """

    bytes: tuple[int, ...]
    samples: int
    network_bytes: int


def checkpoint_cost(epochs: int) -> CheckpointCost:
    """Train KD on digits and look at its checkpoints."""
    with tempfile.TemporaryDirectory() as folder:
        options = ["LOG.PREFIX", folder, "SOLVER.EPOCHS", str(epochs), "LOG.SAVE_CHECKPOINT_FREQ", "1"]
        run = recipe.run(load_config("tllm/embedded/digits.yaml", [*options, "TLLM.DETECTOR.TYPE", "none"]))
        state = torch.load(run.log_folder / "latest", weights_only=True)
        networks = {key: value for key, value in state["model"].items() if isinstance(value, Tensor)}
        momenta = {str(key): value["momentum_buffer"] for key, value in state["optimizer"]["state"].items()}
        sizes = tuple((run.log_folder / f"epoch_{epoch}").stat().st_size for epoch in range(1, epochs + 1))
        samples = len(run.read_split().holdout)
    return CheckpointCost(sizes, samples, nbytes(networks) + nbytes(momenta))
