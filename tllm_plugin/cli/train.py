"""`tllm train`: one run from a config."""

from __future__ import annotations

import argparse
import shlex
from typing import Any

from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.hosts.checkouts import locate
from tllm_plugin.hosts.embedded import job
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.report.page import write_report_if_possible


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "train",
        help="train what a config describes",
        description="Train what a config describes; a teacher or reference that it does not name is trained first.",
        epilog="Example: tllm train --cfg configs/tllm/embedded/digits.yaml DISTILLER.TYPE AT EXPERIMENT.SEED 1",
    )
    parser.add_argument(
        "--cfg", required=True, metavar="FILE", help="YAML file, or its path below the packaged configs"
    )
    parser.add_argument("--host", choices=("embedded", "mdistiller"), default="embedded", help="whose loop trains")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of this run")
    parser.add_argument("--overwrite", action="store_true", help="start anew although the run exists")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="overrides, as in SOLVER.EPOCHS 30")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Train, and say where the results are."""
    if options.host == "mdistiller":
        if options.overwrite:
            raise ConfigError("Expected `--overwrite` with the embedded host only: mdistiller always starts anew")
        # Importing it registers in mdistiller, which need not be there.
        from tllm_plugin.hosts.mdistiller.launch import launch

        launch(locate("mdistiller"), options.cfg, options.opts, resume=options.resume)
        return
    cfg = load_config(options.cfg, options.opts)
    try:
        folder = job.run(cfg, resume=options.resume, overwrite=options.overwrite)
    except KeyboardInterrupt:
        latest = job.log_folder(cfg) / "latest"
        words = ["tllm", "train", "--cfg", options.cfg, *(["--resume"] if latest.exists() else []), *options.opts]
        raise TLLMError(f"interrupted; continue with: {shlex.join(words)}") from None
    metrics = folder.read_metrics()
    print(f"test accuracy {metrics.test_accuracy:.2%} after {metrics.epochs_done} epochs")
    print(f"run folder    {folder.log_folder}")
    if folder.flags_json.exists():
        taught = cfg.DISTILLER.TYPE != "NONE"  # A vanilla student has nothing to be compared with.
        report = write_report_if_possible([folder.path], networks=False) if taught else None
        if report is not None:
            print(f"report        {report}")
        print(f"next          tllm show {shlex.quote(str(folder.log_folder))}")
