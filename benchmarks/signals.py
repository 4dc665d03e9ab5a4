"""Signals: what hold-out, training rows and teacher tell of the effect that distillation has on a class.

    python benchmarks/signals.py output/what_pays/vanilla-seed* output/what_pays/kd-seed*

Takes vanilla and distilled runs of several seeds, of the embedded host, with one hold-out and one teacher. For every
pair of runs of a seed it computes each signal per class, and correlates it with the true effect: the mean test delta
acc of the *other* seeds (Pearson's r over classes; mean and standard deviation over pairs). The noise of the true
effect bounds every correlation: "the pair's own test images" is the row to compare with. Signals of the last epoch need
the checkpoint of the last epoch; those of curves are shown at several epochs, and averaged over the last fifth.

"all signals, ridge" predicts each tenth of the classes by a ridge regression on the other nine, fitted to the effect of
the other seeds, and "posterior with signals" is the mean of the posterior (`tllm_plugin.core.posterior`) of the pair's
hold-out accuracies, with and without signals. `--json FILE` writes all correlations.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.linear_model import RidgeCV
from sklearn.model_selection import KFold
from torch import Tensor, nn

from tllm_plugin.analysis.loaded_run import LoadedRun, load_run
from tllm_plugin.analysis.networks import embedded_config, student_network, teacher_checkpoint, teacher_network
from tllm_plugin.core.curves import Curves
from tllm_plugin.core.evidence import sampling_variance
from tllm_plugin.core.outputs import logits_of
from tllm_plugin.core.posterior import posterior
from tllm_plugin.core.predictions import class_means
from tllm_plugin.core.scores import SCORES
from tllm_plugin.data import DataBundle
from tllm_plugin.hosts.embedded.data import load_bundle

DEVICE = torch.device("cpu")
Signals = dict[str, Tensor]


@dataclass
class Outputs:
    """Outputs of a network for one part of the data: (n, C) logits, (n, D) pooled features, (n,) labels."""

    logits: Tensor
    features: Tensor
    labels: Tensor
    num_classes: int

    def of_class(self, values: Tensor) -> Tensor:
        """Return the mean of (n,) values per class, (C,)."""
        return class_means(values, self.labels, self.num_classes)


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", help="log folders of vanilla and distilled runs")
    parser.add_argument(
        "--per-class", type=int, default=50, help="training images per class for signals of the teacher"
    )
    parser.add_argument("--json", default="", metavar="FILE")
    options = parser.parse_args(words)
    vanilla, distilled = sorted_by_seed([load_run(path) for path in options.runs])
    seeds = sorted(vanilla.keys() & distilled.keys())
    if len(seeds) < 3:
        raise SystemExit(f"Expected runs of at least 3 seeds, but got {len(seeds)}")
    cfg = embedded_config(distilled[seeds[0]])
    bundle = load_bundle(cfg)
    effects = {s: torch.from_numpy(difference(distilled[s], vanilla[s])) for s in seeds}
    temperature = float(cfg.KD.TEMPERATURE)
    checkpoint = teacher_checkpoint(distilled[seeds[0]])
    if checkpoint is None:
        raise SystemExit("Expected the teacher's checkpoint to be found, but it is not")
    teacher = teacher_network(distilled[seeds[0]], checkpoint, bundle, DEVICE)
    holdout, training = rows_of(distilled[seeds[0]], bundle, options.per_class)
    taught = {name: outputs(teacher, bundle, rows) for name, rows in (("hold-out", holdout), ("training", training))}

    found: dict[str, list[float]] = {}
    names_of_last: list[str] = []
    for seed in seeds:
        truth = torch.stack([effects[other] for other in seeds if other != seed]).mean(0)
        curves = curve_signals(distilled[seed], vanilla[seed])
        pair = {
            role: {
                name: outputs(student_network(run, bundle, DEVICE), bundle, rows)
                for name, rows in (("hold-out", holdout), ("training", training))
            }
            for role, run in (("kd", distilled[seed]), ("vanilla", vanilla[seed]))
        }
        last = {
            **{name: values for name, values in curves.items() if name.endswith("last fifth")},
            **student_signals(pair["kd"], pair["vanilla"], taught, temperature),
            **teacher_signals(taught, temperature),
        }
        names_of_last = list(last)
        for name, values in {**curves, **last}.items():
            found.setdefault(name, []).append(correlation(values, truth))
        stacked = torch.stack(list(last.values()), 1)
        found.setdefault("all signals, ridge (cross-validated over classes)", []).append(
            correlation(cross_validated(stacked, truth), truth)
        )
        for name, values in posteriors(distilled[seed], vanilla[seed], stacked).items():
            found.setdefault(name, []).append(correlation(values, truth))
        found.setdefault("the pair's own test images", []).append(correlation(effects[seed], truth))

    counts = torch.bincount(bundle.train_labels[holdout])
    print(
        f"\n{cfg.DATASET.TYPE}, {cfg.DISTILLER.TEACHER} -> {cfg.DISTILLER.STUDENT}, {cfg.SOLVER.EPOCHS} epochs, "
        f"{len(counts)} classes, {int(counts.min())} hold-out images per class, {len(seeds)} pairs of runs, torch "
        f"{torch.__version__}\n\n| signal (distilled - vanilla unless it is the teacher's) | r, mean +- sd |\n"
        "| --- | --- |"
    )
    for name, values in found.items():
        print(f"| {name} | {statistics.mean(values):+.2f} +- {statistics.stdev(values):.2f} |")
    if options.json:
        Path(options.json).write_text(json.dumps({"correlations": found, "combined": names_of_last}, indent=2) + "\n")


def sorted_by_seed(runs: Sequence[LoadedRun]) -> tuple[dict[int, LoadedRun], dict[int, LoadedRun]]:
    """Return vanilla and distilled runs by seed."""
    vanilla = {run.seed: run for run in runs if not run.teacher and run.seed is not None}
    distilled = {run.seed: run for run in runs if run.teacher and run.seed is not None}
    return vanilla, distilled


def difference(one: LoadedRun, other: LoadedRun) -> np.ndarray:
    return np.asarray(one.result.class_accuracy - other.result.class_accuracy)


def rows_of(run: LoadedRun, bundle: DataBundle, per_class: int) -> tuple[Tensor, Tensor]:
    """Return the rows of the hold-out, and as many training rows of every class."""
    assert run.folder is not None
    holdout = torch.as_tensor(run.folder.read_split().holdout)
    rest = torch.ones(len(bundle.train_labels), dtype=torch.bool)
    rest[holdout] = False
    order = torch.randperm(len(rest), generator=torch.Generator().manual_seed(0))
    order = order[rest[order]]
    chosen = [order[bundle.train_labels[order] == label][:per_class] for label in range(bundle.num_classes)]
    return holdout, torch.cat(chosen).sort().values


@torch.no_grad()
def outputs(network: nn.Module, bundle: DataBundle, rows: Tensor) -> Outputs:
    """Run a network on training images with the test-time transform."""
    logits, features = [], []
    for image, *_ in bundle.eval_loader(rows, batch_size=500, device=DEVICE, split="train"):
        output = network(image)
        logits.append(logits_of(output).float())
        features.append(output[1]["pooled_feat"].flatten(1).float())
    return Outputs(torch.cat(logits), torch.cat(features), bundle.train_labels[rows], bundle.num_classes)


def curve_signals(distilled: LoadedRun, vanilla: LoadedRun) -> Signals:
    """Return differences of recorded scores at several epochs, and averaged over the last fifth of the epochs."""
    one, other = distilled.curves, vanilla.curves
    assert one is not None and other is not None
    epochs = len(one)
    quarters = [round(epochs * share) for share in (0.25, 0.5, 0.75, 1.0)]
    scores: dict[str, Callable[[Curves], Tensor]] = {
        name: (lambda curves, name=name: curves.class_curves(name))
        for name in ("accuracy", "reciprocal_rank", "true_prob")
    }
    scores["log-loss"] = log_loss
    found = {}
    for name, score in scores.items():
        change = score(one) - score(other)
        for epoch in quarters:
            found[f"{name}, epoch {epoch}"] = change[epoch - 1]
        found[f"{name}, last fifth"] = change[-max(1, epochs // 5) :].mean(0)
    return found


def log_loss(curves: Curves) -> Tensor:
    """Return the mean log probability of the true class, (E, C); probabilities are recorded in steps of 1/255."""
    rows = []
    for epoch in curves.epochs:
        samples = curves.samples_at(epoch)
        log = SCORES["true_prob"](samples).clamp(min=0.5 / 255).log()
        rows.append(class_means(log, curves.labels, curves.num_classes))
    return torch.stack(rows)


def student_signals(
    kd: dict[str, Outputs], vanilla: dict[str, Outputs], taught: dict[str, Outputs], temperature: float
) -> Signals:
    """Return signals of the students after the last epoch."""

    def change(of: Callable[[Outputs], Tensor]) -> Tensor:
        return of(kd["hold-out"]) - of(vanilla["hold-out"])

    found = {
        "calibrated log-loss": change(
            lambda out: -out.of_class(F.cross_entropy(calibrated(out), out.labels, reduction="none"))
        ),
        "predicted count over all hold-out images": change(
            lambda out: torch.bincount(out.logits.argmax(1), minlength=out.num_classes).double()
        ),
        "probability mass over all hold-out images": change(lambda out: out.logits.softmax(1).double().sum(0)),
        "calibrated probability mass": change(lambda out: calibrated(out).softmax(1).double().sum(0)),
    }
    student, teacher = kd["training"], taught["training"]
    losses = [out.of_class(F.cross_entropy(out.logits, out.labels, reduction="none")) for out in (student, teacher)]
    found["student / teacher loss ratio, training rows"] = losses[0] / losses[1]
    by_label = student.logits.softmax(1) - F.one_hot(student.labels, student.num_classes)
    by_teacher = (student.logits / temperature).softmax(1) - (teacher.logits / temperature).softmax(1)
    found["cosine of KD and CE gradients, training rows"] = student.of_class(F.cosine_similarity(by_label, by_teacher))
    found["hold-out gradient . (KD - CE) gradient, last layer"] = alignment(kd, by_teacher * temperature - by_label)
    return found


def calibrated(out: Outputs) -> Tensor:
    """Return the logits divided by the temperature with the least log-loss on the same images."""
    grid = torch.logspace(-1, 1, 41)
    best = min(grid.tolist(), key=lambda t: float(F.cross_entropy(out.logits / t, out.labels)))
    return out.logits / best


def alignment(kd: dict[str, Outputs], gradient: Tensor) -> Tensor:
    """Return the scalar product of two gradients of the last layer's weights, (C,).

    The first is that of the hold-out loss of a class, the second that of the training rows of the same class under
    the teacher minus under the label: positive where the teacher moves the last layer as the hold-out wants it.
    """
    held, train = kd["hold-out"], kd["training"]
    wanted = held.logits.softmax(1) - F.one_hot(held.labels, held.num_classes)
    found = []
    for label in range(held.num_classes):
        here, there = held.labels == label, train.labels == label
        first = wanted[here].T @ held.features[here] / here.sum()
        second = gradient[there].T @ train.features[there] / there.sum()
        found.append((first * second).sum())
    return torch.stack(found).double()


def teacher_signals(taught: dict[str, Outputs], temperature: float) -> Signals:
    """Return signals that need no student."""
    found = {}
    for part, out in taught.items():
        own = torch.arange(len(out.labels)), out.labels
        others = out.logits.clone()
        others[own] = -torch.inf
        found[f"teacher's own-class probability at T = {temperature:g}, {part}"] = out.of_class(
            (out.logits / temperature).softmax(1)[own]
        )
        found[f"teacher's own-class probability at T = 1, {part}"] = out.of_class(out.logits.softmax(1)[own])
        found[f"teacher's margin, {part}"] = out.of_class(out.logits[own] - others.amax(1))
        found[f"teacher's accuracy, {part}"] = out.of_class((out.logits.argmax(1) == out.labels).double())
    return found


def cross_validated(signals: Tensor, truth: Tensor) -> Tensor:
    """Return the prediction of every class by a ridge regression on the other classes."""
    z = ((signals - signals.mean(0)) / signals.std(0).clamp(min=1e-12)).numpy()
    predicted = np.zeros(len(z))
    for fitted, left in KFold(10, shuffle=True, random_state=0).split(z):
        model = RidgeCV(alphas=np.logspace(0, 4, 13)).fit(z[fitted], truth.numpy()[fitted])
        predicted[left] = model.predict(z[left])
    return torch.from_numpy(predicted)


def posteriors(distilled: LoadedRun, vanilla: LoadedRun, signals: Tensor) -> Signals:
    """Return posterior means from the last fifth's hold-out accuracies; they use no test image."""
    one, other = distilled.curves, vanilla.curves
    assert one is not None and other is not None
    last = one.epochs[-max(1, len(one) // 5) :]
    scores = [
        torch.stack([SCORES["accuracy"](curves.samples_at(epoch)) for epoch in last]).mean(0) for curves in (one, other)
    ]
    change = scores[0] - scores[1]
    effect = class_means(change, one.labels, one.num_classes)
    error = sampling_variance(change, one.labels, one.num_classes).sqrt().clamp(min=0.01)
    return {
        "posterior of the hold-out accuracy": posterior(effect, error).mean,
        "posterior of the hold-out accuracy, with signals": posterior(effect, error, signals).mean,
    }


def correlation(one: Tensor, other: Tensor) -> float:
    pair = torch.stack([one.double(), other.double()])
    return float(torch.corrcoef(pair)[0, 1]) if bool((pair.std(1) > 0).all()) else 0.0


if __name__ == "__main__":
    main()
