"""`tllm train`: train a run from a config."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path

from tllm_plugin.analysis.loaded_run import load_run
from tllm_plugin.cli.comparison_table import comparison_table
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.checkouts import locate, make_importable
from tllm_plugin.hosts.console import PlainConsole, say
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.prerequisites import log_folder
from tllm_plugin.hosts.extensions import import_words
from tllm_plugin.hosts.plain_errors import ending_plainly
from tllm_plugin.hosts.repdistiller import launch as repdistiller
from tllm_plugin.report.page import write_report_if_possible
from tllm_plugin.runs.run_folder import RunFolder


def run(options: argparse.Namespace) -> None:
    """Train, and print results and run folder."""
    if options.host == "repdistiller":
        processes.refuse_several(f"the host {options.host}", "the others train with several")
        if options.cfg or options.overwrite:
            raise ConfigError(
                "Expected neither `--cfg` nor `--overwrite` with repdistiller, which has arguments of its own and "
                "always starts anew"
            )
        _run_repdistiller(options)
        return
    if not options.cfg:
        options.parser.error("the following arguments are required: --cfg")
    if options.host == "mdistiller":
        if options.overwrite:
            raise ConfigError("Expected `--overwrite` with the embedded host only: mdistiller always starts anew")
        root = make_importable(locate("mdistiller"))
        # This import registers TLLM in the host, which must be importable by then.
        from tllm_plugin.hosts.mdistiller.launch import launch

        with ending_plainly():
            launch(root, options.cfg, options.opts, resume=options.resume, script=options.script or "")
        return
    with processes.joined():
        # Ranks on other machines may lack the files that the config names.
        cfg = processes.from_main(lambda: load_config(options.cfg, options.opts))
        try:
            folder = recipe.run(cfg, resume=options.resume, overwrite=options.overwrite)
        except KeyboardInterrupt:
            latest = log_folder(cfg) / "latest"
            raise TLLMError(f"interrupted; continue with: {_command(options, resume=latest.exists())}") from None
        writes = processes.is_main()
    if writes:
        _print_results(folder, taught=cfg.DISTILLER.TYPE != "NONE")


def _command(options: argparse.Namespace, *, resume: bool) -> str:
    words = ["train", *import_words(), "--cfg", options.cfg, *(["--resume"] if resume else []), *options.opts]
    if not processes.were_started():
        return shlex.join(["tllm", *words])
    started_here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    line = shlex.join(["torchrun", "--nproc_per_node", started_here, "-m", "tllm_plugin", *words])
    return line if started_here == os.environ["WORLD_SIZE"] else f"{line}, with its --nnodes and --rdzv_... as before"


def _print_results(folder: RunFolder, *, taught: bool) -> None:
    metrics = folder.read_metrics()
    accuracy = f"{metrics.test_accuracy:.2%}" if metrics.tested else "not measured,"
    say(f"test accuracy {accuracy} after {metrics.epochs_done} epochs")
    report: Path | None = None
    # There is nothing to compare a vanilla student with.
    if taught and metrics.tested and folder.flags_json.exists():
        report = write_report_if_possible([folder.path], networks=False)
        PlainConsole().print(comparison_table(load_run(folder.path)))
    say(f"run folder    {folder.log_folder}")
    if report is not None:
        say(f"report        {report}")
    if folder.flags_json.exists():
        say(f"next          tllm show {shlex.quote(str(folder.log_folder))}")


def _run_repdistiller(options: argparse.Namespace) -> None:
    script = options.script or "train_student.py"
    try:
        with ending_plainly():
            repdistiller.launch(locate("repdistiller"), options.opts, resume=options.resume, script=script)
    except KeyboardInterrupt:
        if "--tllm" not in options.opts:
            raise
        words = ["tllm", "train", *import_words(), "--host", "repdistiller", "--resume", "--", *options.opts]
        raise TLLMError(f"interrupted; continue with: {shlex.join(words)}") from None
