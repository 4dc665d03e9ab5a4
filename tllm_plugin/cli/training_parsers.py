"""Arguments of the subcommands that read configs: train, test, search, demo, validate and config.

This module does not import torch, directly or indirectly, so that help is printed without delay.
"""

from __future__ import annotations

import argparse
from typing import Any

from tllm_plugin.core.paths import expanded

DEFAULT_ETAS = ("0.01", "0.02", "0.05", "0.1", "0.2")
DEFAULT_RANGE = "ETA=0.005:0.3:log"
HOSTS = ("embedded", "mdistiller", "repdistiller")
PRUNERS = ("median", "halving", "hyperband")

_SEARCH = """\
Choose eta by training with several values and scoring each student on a second
class-balanced hold-out that is cut from the training data
(TLLM.HOLDOUT.SEARCH_FRACTION; as large as the first hold-out if it is 0). Test
data is not used. Give the same command again to continue a search that was
stopped. Give it in several terminals, or on several machines that share
LOG.PREFIX (RepDistiller: the working folder), to share the trials among
several workers.
"""

_SEARCH_SPACE = f"""\
--space takes the keys of `tllm config keys --searchable`, by their full name or
its last part, with a list of values or a range (a range needs --trials):
  --space ETA=0.02,0.05,0.1 CE_WEIGHT=1,4         every combination: 6 trials
  --space ETA=0.01:0.2:log CE_WEIGHT=0.5:8:log LABEL_SMOOTHING=0:0.2 --trials 20
  --space TYPE=reference,imitation SCORE=accuracy,reciprocal_rank
The default is --eta {" ".join(DEFAULT_ETAS)}, or with --trials
--space {DEFAULT_RANGE}.

With the embedded host and mdistiller, the epochs that trials have in common are
trained once. With RepDistiller, every trial trains all of its epochs:
  tllm search --host mdistiller --cfg your.yaml --prune median
  tllm search --host repdistiller -- --path_t T.pth --distill kd \\
    --model_s resnet8x4 -a 0.9 -r 0.1

Example: tllm search --cfg configs/tllm/embedded/digits.yaml --eta 0.02 0.1
"""


def train(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm train`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "train",
        help="train the run that a config describes",
        description="Train the run that a config describes. A teacher or a vanilla reference that the config needs but "
        "does not name is trained first.",
        epilog="On several GPUs or machines: torchrun ... -m tllm_plugin train ... "
        "Example: tllm train --cfg configs/tllm/embedded/digits.yaml DISTILLER.TYPE AT EXPERIMENT.SEED 1",
    )
    _add_config(parser)
    parser.add_argument(
        "--script",
        metavar="FILE",
        help="training script of the host (default: train_student.py of repdistiller, tools/train.py of mdistiller)",
    )
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint of this run")
    parser.add_argument("--overwrite", action="store_true", help="start anew even if the run exists")
    _add_overrides(
        parser, "; after --, arguments of the host's own script (repdistiller takes all of its arguments there)"
    )
    return parser


def test(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm test`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "test",
        help="test the students of runs that have no test results",
        description="Test the students of finished runs of the embedded host that have no test results, because they "
        "were trained with LOG.TEST_FREQ -1, as in a search, or because the results were lost. Nothing is trained, and "
        "existing results are kept.",
        epilog="Example: tllm test output/digits/kd-digits_student-seed0",
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="log folder of a run, or its tllm/ folder")
    parser.add_argument(
        "--path", type=expanded, default="", metavar="FOLDER", help="folder of the data (default: as in training)"
    )
    parser.add_argument("--device", default="", metavar="NAME", help="RUNTIME.DEVICE (default: as in training)")
    return parser


def search(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm search`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "search",
        help="choose eta or other options on a separate hold-out",
        description=_SEARCH,
        epilog=_SEARCH_SPACE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_config(parser)
    parser.add_argument("--eta", nargs="+", metavar="ETA", help="values of eta to try")
    parser.add_argument("--space", nargs="+", metavar="KEY=...", help="keys to search and their values; see below")
    parser.add_argument("--trials", type=int, metavar="N", help="let TPE choose N trials instead of trying all values")
    parser.add_argument(
        "--storage",
        default="",
        metavar="ADDRESS",
        help="storage that workers share: journal:FILE, sqlite:///FILE, or another database that Optuna supports "
        "(default: a journal in the folder of the search)",
    )
    parser.add_argument(
        "--retrain",
        action="store_true",
        help="train a final student with the chosen values on all training data except the detection hold-out",
    )
    parser.add_argument(
        "--prune",
        choices=PRUNERS,
        default="",
        help="stop trials early: below the median of the finished ones, by successive halving, or by hyperband",
    )
    parser.add_argument(
        "--no-baseline", action="store_true", help="do not train the inner distiller without detection for comparison"
    )
    parser.add_argument(
        "--checkpoint-every",
        type=int,
        metavar="EPOCHS",
        help="number of epochs between checkpoints from which later trials can start; a larger number saves disk "
        "space, a smaller one shares more epochs (default: 1; embedded host: at most one every two seconds). The "
        "embedded host also keeps one wherever two trials diverge, if there are at most 32 trials and no ranges",
    )
    parser.add_argument(
        "--json",
        type=expanded,
        default="",
        metavar="FILE",
        help="write trials, choice and evidence as JSON; - is standard output",
    )
    _add_overrides(parser, "; for repdistiller its own arguments after --")
    return parser


def demo(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm demo`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "demo",
        help="see TLLM at work on handwritten digits, in one or two minutes",
        description="Train a teacher, two vanilla students, a KD student and a TLLM student on scikit-learn's digits.",
        epilog="Example: tllm demo --no-plant --out /tmp/demo",
    )
    parser.add_argument(
        "--no-plant", action="store_true", help="use the teacher as trained: do not plant undistillable classes in it"
    )
    parser.add_argument(
        "--out", type=expanded, default="output", metavar="FOLDER", help="folder for the run folders (default: output)"
    )
    _add_overrides(parser)
    return parser


def validate(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm validate`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "validate",
        help="report all errors of configs of the embedded host, without running them",
        description="Report all errors of configs of the embedded host, each with the full name of the key; nothing is "
        "run. Configs of the other hosts have other keys and are checked by `tllm train --host`.",
        epilog="Example: tllm validate configs/tllm/embedded/*.yaml",
    )
    parser.add_argument("cfgs", nargs="+", metavar="CFG", help="YAML files")
    return parser


def power(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm power`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "power",
        help="print which drops a hold-out can reveal, before anything is trained",
        description="Simulate the detector of a config and print the smallest sustained accuracy drop that it flags "
        "with 80 % probability, for several sizes of the hold-out. Images are counted, not decoded; "
        "--classes and --images replace a data set that is not on this machine.",
        epilog="Example: tllm power --classes 100 --images 500 TLLM.HOLDOUT.FRACTION 0.05 SOLVER.EPOCHS 240",
    )
    parser.add_argument("--cfg", metavar="FILE", help="YAML file, or its path below the packaged configs")
    parser.add_argument("--classes", type=int, metavar="C", help="number of classes, in place of a data set")
    parser.add_argument("--images", type=int, metavar="N", help="training images of each class")
    parser.add_argument(
        "--changed",
        type=float,
        default=0.2,
        metavar="SHARE",
        help="share of a class's images on which two equally good students differ (default: %(default)s)",
    )
    _add_overrides(parser)
    return parser


def config(commands: Any) -> argparse.ArgumentParser:
    """Add `tllm config`."""
    parser: argparse.ArgumentParser = commands.add_parser(
        "config",
        help="list config keys with their defaults and meaning",
        description="List the keys of TLLM, of its methods and of the embedded host, including the keys of your own "
        "detectors and methods, each with its [--flag] for RepDistiller. Other keys of mdistiller are not listed.",
        epilog="Example: tllm config keys --grep detector",
    )
    parser.add_argument("what", choices=["keys"], help="what to list")
    parser.add_argument("--grep", default="", metavar="TEXT", help="list only lines that contain TEXT; ignores case")
    parser.add_argument("--searchable", action="store_true", help="list only keys that `tllm search --space` takes")
    return parser


def _add_config(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--cfg", metavar="FILE", help="YAML file, or its path below the packaged configs")
    parser.add_argument(
        "--host", choices=HOSTS, default="embedded", help="codebase whose training loop is used (default: embedded)"
    )


def _add_overrides(parser: argparse.ArgumentParser, more: str = "") -> None:
    parser.add_argument(
        "opts",
        nargs="*",
        metavar="KEY VALUE",
        help=f"config keys to change and their values, as in SOLVER.EPOCHS 30{more}",
    )
