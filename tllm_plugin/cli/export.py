"""`tllm export`: write the student of a run, or what it found about the classes, for other tools."""

from __future__ import annotations

import argparse
import json
from typing import Any

from tllm_plugin.analysis.export import SUFFIXES, WEIGHTS, classes_record, export_student
from tllm_plugin.analysis.records import as_csv
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.paths import expanded
from tllm_plugin.hosts.console import say, write_out
from tllm_plugin.runs.atomic import write_text
from tllm_plugin.runs.run_folder import RunFolder


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "export",
        help="write the student of a run as safetensors, state_dict or ONNX, or its classes as JSON or CSV",
        description=(
            "Write the student of a run with its class names and normalisation, or what the run found about each "
            "class: flag, drop, evidence, teaching weight. The formats are described in docs/weights.md."
        ),
        epilog="Example: tllm export output/digits/kd --out student.safetensors student.onnx --classes classes.csv",
    )
    parser.add_argument("run_path", metavar="RUN", help="log folder of a run, or its tllm/ folder")
    parser.add_argument(
        "--out",
        nargs="+",
        type=expanded,
        default=[],
        metavar="FILE",
        help=f"the student, in the format of the suffix: {', '.join(SUFFIXES)}",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        default=WEIGHTS[0],
        help="of the last epoch, which the test results belong to, or of the best epoch on the hold-out",
    )
    parser.add_argument(
        "--classes",
        type=expanded,
        default="",
        metavar="FILE",
        help="the classes: CSV for a suffix .csv, else JSON; - is standard output",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Write the files, and say where they are.

    Raises:
        TLLMError: The run cannot be read, or a file cannot be written.
    """
    if not (options.out or options.classes):
        raise ConfigError("Expected `--out` or `--classes` to name a file, but got neither")
    folder = RunFolder.find(options.run_path)
    for path in options.out:
        export_student(folder, path, options.weights)
    if options.classes:
        record = classes_record(folder)
        as_table = options.classes.endswith(".csv")
        text = as_csv(record["classes"]) if as_table else json.dumps(record, indent=2, allow_nan=False) + "\n"
        if options.classes == "-":
            write_out(text)
            return
        write_text(options.classes, text)
    for path in [*options.out, *([options.classes] if options.classes else [])]:
        say(f"written: {path}")
