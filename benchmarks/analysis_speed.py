"""What comparing two networks costs beyond running them, and how long a report of 1,000 classes takes.

    python benchmarks/analysis_speed.py --json analysis_speed.json

Compares two resnet8 on 10,000 random images of 32 x 32: forward passes alone and the whole comparison take turns, and
which goes first changes every round (A B, B A, ...), so that a machine that gets slower or faster does not count.
Times are CPU seconds of this process where there is no GPU, so that other processes hardly count, and wall-clock
seconds where there is one. Then writes the report of four runs with 1,000 classes, 50 test images per class and 240
epochs of curves, and a t-SNE of 2,000 points.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tllm_plugin import Curves, Predictions, predict
from tllm_plugin.analysis.comparison import compare
from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.analysis.representations import TSNE_POINTS, tsne
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.models import create_model
from tllm_plugin.report.page import write_report
from tllm_plugin.runs.flags_file import ClassFlag, DetectorChoice, FlagsRecord
from tllm_plugin.runs.metrics_file import MetricsRecord
from tllm_plugin.runs.run_folder import RunFolder

CLASSES, BATCH = 100, 500
REPORT_CLASSES, PER_CLASS, EPOCHS, HOLDOUT = 1_000, 50, 240, 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--json", default="", metavar="FILE", help="write the measurements")
    options = parser.parse_args()
    measured = {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpus": os.cpu_count(),
        "images": options.images,
        **comparison(options.images, options.repeats),
        **report(options.repeats),
        "tsne_seconds": fastest(lambda: tsne(np.random.default_rng(0).normal(size=(TSNE_POINTS, 64))), 1),
    }
    for name, value in measured.items():
        print(f"{name:32} {value:.3f}" if isinstance(value, float) else f"{name:32} {value}")
    if options.json:
        Path(options.json).write_text(json.dumps(measured, indent=2) + "\n")


def fastest(call, repeats: int) -> float:  # type: ignore[no-untyped-def]
    """Return the shortest time of `repeats` calls, in seconds; see above for which seconds."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    times = []
    for _ in range(repeats):
        started = clock()
        call()
        times.append(clock() - started)
    return min(times)


def comparison(count: int, repeats: int) -> dict[str, float]:
    """Time two forward passes, and the comparison that makes them."""
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    networks = [create_model("resnet8", CLASSES).to(device).eval() for _ in range(2)]
    labels = torch.arange(count) % CLASSES
    images = torch.randn(count, 3, 32, 32)
    batches = list(zip(images.to(device).split(BATCH), labels.to(device).split(BATCH), strict=True))

    @torch.no_grad()
    def forward_only() -> None:
        for network in networks:
            for image, _ in batches:
                network(image)
        if device.type == "cuda":
            torch.cuda.synchronize()

    def whole() -> None:
        results = [TestResult.from_predictions(predict(network, batches)) for network in networks]
        found = compare([(0, results[0])], [(0, results[1])])
        assert len(found.interval[0]) == len(found.q_value) == CLASSES
        assert found.hurt_count.found.n == found.significantly_worse_count.found.n == 1

    networks[0](batches[0][0])
    times = []
    for turn in range(repeats):
        calls = (forward_only, whole) if turn % 2 == 0 else (whole, forward_only)
        taken = [fastest(call, 1) for call in calls]
        times.append((taken[0], taken[1]) if turn % 2 == 0 else (taken[1], taken[0]))
    forward, compared = (min(column) for column in zip(*times, strict=True))
    ratios = sorted(both / plain for plain, both in times)
    return {
        "two_forward_passes_seconds": forward,
        "comparison_seconds": compared,
        "comparison_over_forward": compared / forward,
        "comparison_over_forward_median": statistics.median(ratios),
        "comparison_over_forward_least": ratios[0],
        "comparison_over_forward_most": ratios[-1],
    }


def report(repeats: int) -> dict[str, float]:
    """Time the report of four runs, from reading the folders to the file."""
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            _write_run(Path(folder) / name, method, detector, seed)
            for seed, (name, method, detector) in enumerate(
                (("vanilla", "NONE", "none"), ("vanilla-1", "NONE", "none"), ("kd", "KD", "none"), ("tllm", "KD", "x"))
            )
        ]
        page = Path(folder) / "report.html"
        seconds = fastest(lambda: write_report([load_run(path) for path in paths], page, networks=False), repeats)
        return {"report_seconds": seconds, "report_megabytes": page.stat().st_size / 1e6}


def _write_run(log_folder: Path, method: str, detector: str, seed: int) -> Path:
    generator = np.random.default_rng(seed)
    labels = np.tile(np.arange(REPORT_CLASSES), PER_CLASS)
    right = generator.random(labels.size) < 0.7
    answers = np.where(right, labels, (labels + 1) % REPORT_CLASSES)
    correct, total = (np.bincount(x, minlength=REPORT_CLASSES) for x in (labels[right], labels))
    run = RunFolder.inside(log_folder).create()
    run.write_predictions(Predictions(torch.from_numpy(labels), torch.from_numpy(answers), REPORT_CLASSES))
    counts = (tuple(correct.tolist()), tuple(total.tolist()))
    run.write_metrics(MetricsRecord(float(right.mean()), *counts, (1.0,) * EPOCHS, None, EPOCHS, True))
    classes = tuple(
        ClassFlag(c, f"n{c:08d}, a class", c % 10 == 0 and detector == "x", 40, None, None, None, 0, 0)
        for c in range(REPORT_CLASSES)
    )
    run.write_flags(FlagsRecord(DetectorChoice(detector, {}), EPOCHS, REPORT_CLASSES, "", classes))
    holdout = torch.arange(REPORT_CLASSES).repeat_interleave(HOLDOUT)
    curves = Curves(holdout, REPORT_CLASSES, torch.arange(len(holdout)))
    for epoch in range(1, EPOCHS + 1):
        rank = torch.from_numpy(generator.integers(1, 4, len(holdout), dtype=np.uint8))
        predicted = torch.where(rank == 1, holdout, -1)
        curves.append(epoch, Predictions(holdout, predicted, REPORT_CLASSES, rank, torch.rand(len(holdout))))
    run.write_curves(curves.state_dict())
    run.write_config(
        f"DISTILLER: {{TYPE: {method}, STUDENT: resnet18, TEACHER: resnet34}}\n"
        f"EXPERIMENT: {{SEED: {seed}}}\nTLLM: {{DETECTOR: {{TYPE: {detector}}}}}\n"
    )
    return log_folder


if __name__ == "__main__":
    main()
