"""Summarise runs of RepDistiller with TLLM: accuracy, classes that do worse than in the vanilla run, flags.

    python benchmarks/repdistiller_runs.py save/student_model --out runs.json

Reads what `configs/tllm/repdistiller/imagefolder.sh` (or any run with --tllm) left behind; trains nothing. The vanilla
run is the one with weights `r:1.0_a:0.0_b:0.0`; a second one under another trial is the null of the counts.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

from tllm_plugin.analysis.results import TestResult, change_between
from tllm_plugin.runs.run_folder import RunFolder

VANILLA = "_kd_r:1.0_a:0.0_b:0.0_"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="the host's folder of student runs")
    parser.add_argument("--out", type=Path, help="JSON to write")
    options = parser.parse_args()
    runs = [RunFolder(path.parent) for path in sorted(options.folder.glob("*/tllm/metrics.json"))]
    vanilla = [run for run in runs if VANILLA in run.log_folder.name]
    if not vanilla:
        parser.error(f"Expected a vanilla run ({VANILLA}) in {options.folder}, but there is none")
    # The null's trial has a longer name: 0-null beside 0.
    reference = min(vanilla, key=lambda run: len(run.log_folder.name))
    rows = [_row(run, reference) for run in runs]
    print("| run | epochs | test accuracy | classes below vanilla | by more than 5 points | flagged (epoch) |")
    print("| --- | --- | --- | --- | --- | --- |")
    for row in rows:
        flags = ", ".join(f"{name} ({epoch})" for name, epoch in row["flagged"]) or "none"
        hurt = "" if row["hurt"] is None else row["hurt"]
        print(f"| {row['run']} | {row['epochs']} | {row['accuracy']:.1%} | {hurt} | {row['hurt_much']} | {flags} |")
    if options.out:
        options.out.write_text(json.dumps(rows, indent=2) + "\n")


def _row(run: RunFolder, vanilla: RunFolder) -> dict[str, Any]:
    metrics, flags = run.read_metrics(), run.read_flags()
    assert metrics.test_accuracy is not None and metrics.finished, f"{run.log_folder} is not finished"
    results = (TestResult.from_metrics(record) for record in (vanilla.read_metrics(), metrics))
    change = None if run is vanilla else change_between(*results)
    return {
        "run": re.sub(r"^S:", "", run.log_folder.name),
        "epochs": metrics.epochs_done,
        "accuracy": metrics.test_accuracy,
        "seconds_per_epoch": sum(metrics.seconds_per_epoch) / len(metrics.seconds_per_epoch),
        "hurt": change and int(change.hurt.sum()),
        "hurt_much": "" if change is None else int(change.largely_hurt.sum()),
        "flagged": [(item.name, item.epoch_flagged) for item in flags.classes if item.flagged],
    }


if __name__ == "__main__":
    main()
