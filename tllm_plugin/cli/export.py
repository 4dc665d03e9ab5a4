"""`tllm export`: write the student of a run, or the findings about its classes, for other tools."""

from __future__ import annotations

import argparse

from tllm_plugin.analysis.export import classes_record, export_student
from tllm_plugin.analysis.records import as_csv
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.hosts.console import say, write_json_result, write_result
from tllm_plugin.runs.run_folder import RunFolder


def run(options: argparse.Namespace) -> None:
    """Write the files and print their paths.

    Raises:
        TLLMError: The run cannot be read, or a file cannot be written.
    """
    if not (options.out or options.classes):
        raise ConfigError("Expected `--out` or `--classes` to name a file, but got neither")
    folder = RunFolder.find(options.run_path)
    for path in options.out:
        export_student(folder, path, options.weights)
        if options.classes != "-":
            say(f"written: {path}")
    if options.classes.endswith(".csv"):
        write_result(options.classes, as_csv(classes_record(folder)["classes"]))
    elif options.classes:
        write_json_result(options.classes, classes_record(folder))
