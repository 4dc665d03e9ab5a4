"""`tllm train`: train a run from a config."""

from __future__ import annotations

import argparse
import os
import shlex
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from tllm_plugin.cli.overrides import add_overrides
from tllm_plugin.core.errors import ConfigError, TLLMError
from tllm_plugin.hosts import processes
from tllm_plugin.hosts.checkouts import locate, make_importable
from tllm_plugin.hosts.console import say
from tllm_plugin.hosts.embedded import recipe
from tllm_plugin.hosts.embedded.config import load_config
from tllm_plugin.hosts.embedded.prerequisites import log_folder, needed_teacher
from tllm_plugin.hosts.extensions import import_words
from tllm_plugin.hosts.plain_errors import ending_plainly
from tllm_plugin.hosts.repdistiller import launch as repdistiller
from tllm_plugin.report.page import write_report_if_possible
from tllm_plugin.runs.run_folder import RunFolder


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "train",
        help="train the run that a config describes",
        description="Train the run of a config; a teacher or reference that the config does not name is trained first.",
        epilog="On several GPUs or machines: torchrun ... -m tllm_plugin train ... "
        "Example: tllm train --cfg configs/tllm/embedded/digits.yaml DISTILLER.TYPE AT EXPERIMENT.SEED 1",
    )
    parser.add_argument("--cfg", metavar="FILE", help="YAML file, or its path below the packaged configs")
    hosts = ("embedded", "mdistiller", "repdistiller")
    parser.add_argument("--host", choices=hosts, default="embedded", help="whose loop trains")
    parser.add_argument(
        "--script",
        metavar="FILE",
        help="of repdistiller (train_student.py; train_teacher.py for a teacher) or mdistiller (tools/train.py)",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of this run")
    parser.add_argument("--overwrite", action="store_true", help="start anew although the run exists")
    add_overrides(parser, "; for repdistiller its own arguments after --, as for mdistiller those of its script")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> None:
    """Train, and print where the results are."""
    if options.host == "repdistiller":
        processes.refuse_several(f"the host {options.host}", "the others train with several")
    if options.host == "repdistiller":
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
        # Not before the host can be imported: this registers TLLM in it.
        from tllm_plugin.hosts.mdistiller.launch import launch

        with ending_plainly():
            launch(root, options.cfg, options.opts, resume=options.resume, script=options.script or "")
        return
    with processes.joined():
        # Of several processes, those on other machines need not have the files that it names.
        cfg = processes.from_main(lambda: load_config(options.cfg, options.opts))
        try:
            folder = recipe.run(cfg, resume=options.resume, overwrite=options.overwrite)
        except KeyboardInterrupt:
            latest = log_folder(cfg) / "latest"
            raise TLLMError(f"interrupted; continue with: {_command(options, resume=latest.exists())}") from None
        writes = processes.is_main()
    if writes:
        has_teacher = needed_teacher(cfg) is not None or bool(cfg.DISTILLER.TEACHER_CHECKPOINT)
        taught = cfg.DISTILLER.TYPE != "NONE"
        _print_results(folder, taught=taught, teacher=_teacher(cfg, folder) if taught and has_teacher else "")


def _command(options: argparse.Namespace, *, resume: bool) -> str:
    words = ["train", *import_words(), "--cfg", options.cfg, *(["--resume"] if resume else []), *options.opts]
    if not processes.were_started():
        return shlex.join(["tllm", *words])
    started_here = os.environ.get("LOCAL_WORLD_SIZE", os.environ["WORLD_SIZE"])
    line = shlex.join(["torchrun", "--nproc_per_node", started_here, "-m", "tllm_plugin", *words])
    return line if started_here == os.environ["WORLD_SIZE"] else f"{line}, with its --nnodes and --rdzv_... as before"


def _print_results(folder: RunFolder, *, taught: bool, teacher: str) -> None:
    metrics = folder.read_metrics()
    accuracy = f"{metrics.test_accuracy:.2%}" if metrics.tested else "not looked at,"
    say(f"test accuracy {accuracy} after {metrics.epochs_done} epochs")
    if teacher:
        say(f"teacher       {teacher}")
    say(f"run folder    {folder.log_folder}")
    if folder.flags_json.exists():
        # A vanilla student has nothing to be compared with.
        report: Path | None = None
        if taught and metrics.tested:
            report = write_report_if_possible([folder.path], networks=False)
        if report is not None:
            say(f"report        {report}")
        say(f"next          tllm show {shlex.quote(str(folder.log_folder))}")


def _teacher(cfg: CfgNode, student: RunFolder) -> str:
    """Describe the teacher's test accuracy, if known, and the classes planted in it, if any."""
    needed = needed_teacher(cfg, student.read_data())
    place = log_folder(needed) if needed is not None else Path(cfg.DISTILLER.TEACHER_CHECKPOINT).parent
    try:
        accuracy = RunFolder.find(place).read_metrics().test_accuracy
    except TLLMError:  # A checkpoint from elsewhere.
        accuracy = None
    told = "test accuracy not known" if accuracy is None else f"test accuracy {accuracy:.2%}"
    classes = ", ".join(map(str, cfg.DISTILLER.PLANT.CLASSES))
    planted = f", before it was made wrong on purpose on classes {classes}" if classes else ""
    return f"{cfg.DISTILLER.TEACHER}, {told}{planted}"


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
