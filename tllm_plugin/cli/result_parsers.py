"""Arguments of the subcommands that read results or install hosts, from `tllm show` to `tllm host`.

This module does not import torch, directly or indirectly, so that help is printed without delay.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from tllm_plugin.analysis.published import DATA_SETS
from tllm_plugin.core.paths import expanded


def show(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm show`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "show",
        help="show the flags and teaching curves of a run",
        description="Show the flags of a run with their evidence, and its teaching curves.",
        epilog="Example: tllm show output/digits/kd-digits_student-seed0 --score reciprocal_rank",
    )
    parser.add_argument("run_path", metavar="RUN", help="log folder of a run, or its tllm/ folder")
    parser.add_argument(
        "--score",
        default="accuracy",
        metavar="NAME",
        help="score of the curves: accuracy (default), reciprocal_rank, true_prob or agreement",
    )
    _add_files(parser, ("json", "flags, policy and curves as JSON"))
    return parser


def compare(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm compare`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "compare",
        help="compare runs or checkpoints per class, with intervals and null counts",
        description="Compare students with a vanilla student, class by class. Runs whose configs differ only in the "
        "seed are seeds of one method; LABEL=RUN,RUN groups other runs. A table of answers (.csv, .npz or .parquet "
        "with the columns label, prediction and path or index) may take the place of a run. MODEL@CHECKPOINT "
        "is a bare checkpoint and timm:NAME[@CHECKPOINT] a model of timm; both need --data. With --pairs, "
        "names alternate between a vanilla student and the distilled student to compare with it, as for the "
        "four students of the paper's Table 7.",
        epilog="Example: tllm compare output/digits/vanilla output/digits/kd output/digits/tllm --markdown -",
    )
    parser.add_argument("vanilla", metavar="VANILLA", help="vanilla student to compare with; RUN,RUN for several seeds")
    parser.add_argument("others", nargs="+", metavar="DISTILLED", help="runs, tables of answers or checkpoints")
    parser.add_argument("--pairs", action="store_true", help="VANILLA DISTILLED VANILLA DISTILLED ...")
    parser.add_argument("--data", default="", metavar="TYPE[=PATH]", help="test data for bare checkpoints")
    parser.add_argument(
        "--image-size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="image size for bare checkpoints (default: as recorded in the checkpoint)",
    )
    parser.add_argument(
        "--class-order",
        default="",
        metavar="ORDER",
        help="order of the class folders of --data: natural, or a file with the names of the folders",
    )
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--{name}",
            type=_numbers,
            default=(),
            metavar="M,M,M",
            help=f"{what} per channel of pixels in 0..1 (default: as recorded in the checkpoint, or of the data set)",
        )
    parser.add_argument(
        "--answers",
        action="store_true",
        help="evaluate the students of runs without recorded predictions again, to compare image by image",
    )
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="number of classes to print, worst first")
    _add_files(
        parser,
        ("json", "everything as JSON"),
        ("csv", "one line per method and class"),
        ("markdown", "the tables as Markdown"),
    )
    return parser


def headroom(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm headroom`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "headroom",
        help="estimate the largest possible gain of a class-wise rule, with noise removed",
        description="Estimate from runs of several seeds how much the true effects of a method differ between classes, "
        "and how much mean accuracy would gain if every class that the method makes worse were restored. Runs whose "
        "configs differ only in the seed are seeds of one method; LABEL=RUN,RUN groups other runs.",
        epilog="Example: tllm headroom output/vanilla-seed0 output/vanilla-seed1 output/kd-seed0 output/kd-seed1",
    )
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", help="log folders or tables of answers, including vanilla ones"
    )
    _add_files(parser, ("json", "the estimates"))
    return parser


def report(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm report`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "report",
        help="write one HTML page on several runs",
        description="Write one self-contained HTML page: the effect of distillation on every class, its significance, "
        "and what to try next. Vanilla runs and teachers that the runs refer to are included.",
        epilog="Example: tllm report output/demo/vanilla output/demo/vanilla-2 output/demo/kd output/demo/tllm",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="log folders or tables of answers (.csv, .npz, .parquet); runs that differ only in the seed are seeds of "
        "one method, LABEL=RUN,RUN groups other runs",
    )
    parser.add_argument(
        "--out", type=expanded, metavar="FILE", help="file to write (default: tllm/report.html of the last run)"
    )
    parser.add_argument(
        "--no-networks", action="store_true", help="omit CKA and t-SNE, for which the networks must be run"
    )
    parser.add_argument("--points", type=int, metavar="N", help="largest number of points of a t-SNE (default: 2000)")
    return parser


def tables(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm tables`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "tables",
        help="fill the paper's tables with the runs below a folder",
        description="Fill Tables 5, 6, 8, 9, 10 and 11 of the paper's appendix with the finished runs below a folder, "
        "beside the paper's numbers. A cell without a run holds the paper's number only.",
        epilog="Example: tllm tables output --latex tables.tex",
    )
    parser.add_argument("folder", type=expanded, metavar="RUNS_DIR", help="folder that is searched recursively")
    parser.add_argument(
        "--imagefolder-is", default="", choices=DATA_SETS, help="data set that runs on image folders were trained on"
    )
    _add_files(
        parser, ("markdown", "the tables as Markdown"), ("latex", "the tables as LaTeX"), ("json", "the tables as JSON")
    )
    return parser


def export(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm export`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "export",
        help="write the student of a run as safetensors, state_dict or ONNX, or its classes as JSON or CSV",
        description="Write the student of a run with its class names and normalisation, or the findings about each "
        "class: flag, drop, evidence, teaching weight. The formats are described in docs/weights.md.",
        epilog="Example: tllm export output/digits/kd --out student.safetensors student.onnx --classes classes.csv",
    )
    parser.add_argument("run_path", metavar="RUN", help="log folder of a run, or its tllm/ folder")
    parser.add_argument(
        "--out",
        nargs="+",
        type=expanded,
        default=[],
        metavar="FILE",
        help="the student, in the format of the suffix: .safetensors, .pt, .pth or .onnx",
    )
    parser.add_argument(
        "--weights",
        choices=("latest", "best_holdout"),
        default="latest",
        help="weights of the last epoch, which the test results belong to, or of the best epoch on the hold-out",
    )
    parser.add_argument(
        "--classes",
        type=expanded,
        default="",
        metavar="FILE",
        help="the classes: CSV for a suffix .csv, otherwise JSON; - is standard output",
    )
    return parser


def host(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm host` and its actions."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "host",
        help="install a host at its pinned commit, or show and check checkouts",
        description="Install and check checkouts of the hosts. They are kept in a folder of the user's cache "
        "(TLLM_CACHE_DIR).",
        epilog="Example: tllm host install mdistiller",
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    install = actions.add_parser(
        "install",
        help="clone the pinned commit and apply our patches",
        description="Clone the pinned commit of a host, and apply our patches in a work tree of its own.",
        epilog="Example: tllm host install mdistiller --no-patch",
    )
    install.add_argument("name", metavar="HOST", help="mdistiller or repdistiller")
    install.add_argument(
        "--from",
        dest="origin",
        default="",
        metavar="GIT_URL_OR_PATH",
        help="repository to clone (default: the original)",
    )
    install.add_argument("--no-patch", action="store_true", help="do not apply our patches")
    status = actions.add_parser(
        "status",
        help="show which hosts are installed, patched and importable",
        description="Show which hosts are installed, which patches are applied, and whether the host can be imported.",
        epilog="Example: tllm host status",
    )
    _add_files(status, ("json", "the state as JSON"))
    check = actions.add_parser(
        "check",
        help="check which methods of a checkout work with TLLM; forks and edited checkouts included",
        description="Try every method of a checkout of mdistiller, RepDistiller or a fork on small random images, in a "
        "separate process, and print which methods work with TLLM, which do not, and why. The checkout is not "
        "changed.",
        epilog="Example: tllm host check ~/code/my-fork",
    )
    _add_files(check, ("json", "the result as JSON"))
    check.add_argument("path", metavar="PATH", type=Path, help="root of the checkout")
    check.add_argument(
        "--script", default="", metavar="FILE", help="training script below PATH (default: tries the likely ones)"
    )
    check.add_argument("words", nargs="*", metavar="OPTION", help="after --: options of that script")
    return parser


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def _add_files(parser: argparse.ArgumentParser, *files: tuple[str, str]) -> None:
    for name, what in files:
        parser.add_argument(
            f"--{name}", type=expanded, default="", metavar="FILE", help=f"write {what}; - is standard output"
        )
