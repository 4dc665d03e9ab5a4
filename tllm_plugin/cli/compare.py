"""`tllm compare`: classes that distillation made worse, with significance and the counts expected under the null."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tllm_plugin.analysis import records
from tllm_plugin.analysis.loaded_run import LoadedRun
from tllm_plugin.analysis.named_networks import EvaluationData, load_named
from tllm_plugin.analysis.networks import with_predictions
from tllm_plugin.analysis.records import Markup
from tllm_plugin.analysis.study import Study, build_comparison, build_pairs
from tllm_plugin.analysis.wording import counted, listed
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.escaping import markdown_text, visible
from tllm_plugin.core.paths import expanded
from tllm_plugin.hosts.console import PlainConsole, say, write_out
from tllm_plugin.runs.atomic import write_text

_EVERY = "classes that every student loses, delta acc in points"
_SUMMARY = (
    "method",
    "runs",
    "test accuracy",
    "classes with delta acc < 0",
    "classes at FDR 5 %",
    "classes < -5 points",
    "classes flagged",
)


def add_parser(commands: Any) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "compare",
        help="per-class delta acc of runs or checkpoints, with intervals and nulls",
        description=(
            "Compare students with a vanilla student, per class. Runs whose configs differ only in the seed count as "
            "seeds of one method; LABEL=RUN,RUN groups others. A table of answers (.csv, .npz or .parquet with the "
            "columns label, prediction and path or index) may take the place of a run. MODEL@CHECKPOINT names a bare "
            "checkpoint and timm:NAME[@CHECKPOINT] a model of timm; both need --data. With --pairs every second name "
            "is the vanilla student of the one after it, as for the four students of the paper's Table 7."
        ),
        epilog="Example: tllm compare output/digits/vanilla output/digits/kd output/digits/tllm --markdown -",
    )
    parser.add_argument("vanilla", metavar="VANILLA", help="vanilla student to compare with; RUN,RUN for several seeds")
    parser.add_argument("others", nargs="+", metavar="DISTILLED", help="runs or checkpoints")
    parser.add_argument("--pairs", action="store_true", help="VANILLA DISTILLED VANILLA DISTILLED ...")
    parser.add_argument("--data", default="", metavar="TYPE[=PATH]", help="test data of bare checkpoints")
    parser.add_argument(
        "--image-size",
        type=int,
        default=0,
        metavar="PIXELS",
        help="size of these images (default: as recorded in the checkpoint)",
    )
    parser.add_argument(
        "--class-order",
        default="",
        metavar="ORDER",
        help="order of its class folders: natural, or a file of folder names",
    )
    for name, what in (("mean", "mean"), ("std", "standard deviation")):
        parser.add_argument(
            f"--{name}",
            type=numbers,
            default=(),
            metavar="M,M,M",
            help=f"{what} per channel of pixels in 0..1 (default: what a checkpoint says, else the data set's)",
        )
    parser.add_argument(
        "--answers",
        action="store_true",
        help="evaluate students again whose runs recorded only counts, to compare image by image",
    )
    parser.add_argument("--classes", type=int, default=10, metavar="N", help="number of classes to print, worst first")
    for name, what in (("json", "everything"), ("csv", "one line per method and class"), ("markdown", "both tables")):
        parser.add_argument(
            f"--{name}", type=expanded, default="", metavar="FILE", help=f"write {what}; - is standard output"
        )
    parser.set_defaults(run=run)


def numbers(text: str) -> tuple[float, ...]:
    return tuple(float(number) for number in text.split(","))


def run(options: argparse.Namespace) -> None:
    """Compare, print and write.

    Raises:
        ConfigError: One of the named runs or checkpoints cannot be compared.
    """
    study = _paired(options) if options.pairs else _with_one_baseline(options)
    written = [
        (options.json, json.dumps(records.study_record(study), indent=2, allow_nan=False) + "\n"),
        (options.csv, records.as_csv(records.class_records(study))),
        (options.markdown, markdown(study, options.classes)),
    ]
    for path, text in written:
        if path == "-":
            write_out(text)
        elif path:
            write_text(path, text)
    if "-" not in (path for path, _ in written):
        show(study, options.classes, PlainConsole())
        for path, _ in written:
            if path:
                say(f"written: {path}")


def _with_one_baseline(options: argparse.Namespace) -> Study:
    baseline, *others_by_name = _load([options.vanilla, *options.others], options)
    others = [found for runs in others_by_name for found in runs]
    # Further seeds of the vanilla student may stand among the others.
    known = {str(found.folder) for found in baseline if found.folder is not None}
    more = [found for found in others if _same_kind(found, baseline[0]) and str(found.folder) not in known]
    others = [found for found in others if not _same_kind(found, baseline[0])]
    if not others:
        raise ConfigError(
            f"Expected a run of another kind than {baseline[0].method} to compare, but got seeds of it alone"
        )
    return build_comparison([*baseline, *more], others)


def _paired(options: argparse.Namespace) -> Study:
    names = [options.vanilla, *options.others]
    if len(names) % 2:
        raise ConfigError(f"Expected `--pairs` of a vanilla and a distilled student each, but got {len(names)} names")
    runs = _load(names, options)
    return build_pairs(list(zip(runs[::2], runs[1::2], strict=True)))


def _load(names: Sequence[str], options: argparse.Namespace) -> list[list[LoadedRun]]:
    if bool(options.mean) != bool(options.std):
        raise ConfigError("Expected `--mean` and `--std` together, but got one of them alone")
    data = EvaluationData(options.data, options.image_size, options.class_order, options.mean, options.std)
    loaded = [load_named(name, data) for name in names]
    return [with_predictions(runs) for runs in loaded] if options.answers else loaded


def show(study: Study, most: int, console: Console) -> None:
    """Print both tables and their explanation."""
    worst = class_rows(study, most)
    for title, heading, rows in (
        (f"{len(study.class_names)} classes", summary_heading(study), summary_rows(study)),
        (f"the {counted(len(worst), 'class', 'classes')} that lost most", class_heading(study), worst),
        (_EVERY, every_heading(study), every_rows(study, most)),
    ):
        table = Table(title=title, title_justify="left")
        for place, name in enumerate(heading):
            table.add_column(name, justify="left" if place == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        if rows:
            console.print(table)
    console.print(explanation(study))


def markdown(study: Study, most: int) -> str:
    """Return tables and explanation as Markdown."""
    summary = records.as_markdown(summary_heading(study), summary_rows(study))
    classes = records.as_markdown(class_heading(study), class_rows(study, most))
    every = every_rows(study, most)
    lost = f"{_EVERY}:\n\n{records.as_markdown(every_heading(study), every)}\n\n" if every else ""
    return f"{summary}\n\n{classes}\n\n{lost}{explanation(study, markdown_text)}\n"


def summary_heading(study: Study) -> list[str]:
    """Return the column names of `summary_rows`; baselines get a column if each method has its own."""
    return list(_SUMMARY) if study.vanilla else [*_SUMMARY[:2], study.baseline, *_SUMMARY[2:]]


def summary_rows(study: Study) -> list[list[str]]:
    """Return one row per method: the baseline first, teachers last."""
    rows, classes = [], len(study.class_names)
    vanilla = records.vanilla_record(study)
    if vanilla is not None:
        rows.append([study.baseline, str(vanilla["n"]), records.percent(vanilla), *[""] * 4])
    for record in records.method_records(study):
        rows.append(
            [
                record["method"],
                str(len(record["runs"])),
                *([] if study.vanilla else [records.percent(record["vanilla_accuracy"])]),
                records.percent(record["test_accuracy"]),
                records.count_with_null(record["undistillable"], classes),
                records.count_with_null(record["undistillable_fdr_5_percent"], classes),
                records.count_with_null(record["drop_over_5_points"], classes),
                "" if record["flagged"] is None else f"{records.plain(record['flagged'])} of {classes}",
            ]
        )
    for record in records.teacher_records(study):
        known = record["test_accuracy"]
        told = ["", "not known"] if known is None else [str(known["n"]), records.percent(known)]
        rows.append([record["teacher"], told[0], *([] if study.vanilla else [""]), told[1], *[""] * 4])
    return rows


def class_heading(study: Study) -> list[str]:
    """Return the column names of `class_rows`."""
    vanilla = [study.baseline] if study.vanilla else []
    return ["class", *vanilla, *(f"{method.label}: delta acc [95 %]" for method in study.compared)]


def class_rows(study: Study, most: int) -> list[list[str]]:
    """Return the classes that lost most in any method, in points; `*` marks significantly worse ones (FDR 5 %)."""
    columns = [method.comparison for method in study.compared if method.comparison is not None]
    order = sorted(range(len(study.class_names)), key=lambda index: min(_known(float(c.delta[index])) for c in columns))
    vanilla = study.vanilla_accuracy
    rows = []
    for index in order[: max(most, 0)]:
        cells = [visible(study.class_names[index])]
        if study.vanilla:
            cells.append(f"{vanilla[index]:.1%}")
        for comparison in columns:
            low, high = (end[index] for end in comparison.interval)
            mark = "*" if comparison.surely_hurt[index] else ""
            interval = f"[{100 * low:+.0f}, {100 * high:+.0f}]"
            cells.append(Markup(f"{mark}{100 * comparison.delta[index]:+.1f} {interval}"))
        rows.append(cells)
    return rows


def every_heading(study: Study) -> list[str]:
    """Return the column names of `every_rows`."""
    return ["ID", "class", *(method.label for method in study.compared), "mean"]


def every_rows(study: Study, most: int) -> list[list[str]]:
    """Return the classes on which every student of a comparison in pairs is worse, in points (the paper's Table 7)."""
    if study.vanilla or len(study.compared) < 2:
        return []
    deltas = [method.comparison.delta for method in study.compared if method.comparison is not None]
    means = np.mean(deltas, axis=0)
    lost = sorted(study.hurt_in_every(study.compared).classes, key=lambda index: float(means[index]))
    return [
        [
            str(index),
            visible(study.class_names[index]),
            *(f"{100 * x[index]:+.1f}" for x in deltas),
            f"{100 * means[index]:+.1f}",
        ]
        for index in lost[: max(most, 0)]
    ]


def explanation(study: Study, shown: Callable[[str], str] = visible) -> str:
    """Explain the numbers and the tests behind them.

    Args:
        study: Study to explain.
        shown: Escapes a name for the output format.
    """
    baseline = shown(study.baseline)
    runs = min((len(method.vanilla) for method in study.compared), default=0)
    null = (
        f"the same count for {runs} {baseline} runs against each other"
        if runs > 1
        else f"what chance gives if every changed answer were as likely a loss as a gain (one {baseline} run; a second "
        "one, with another seed, would also show how far seeds differ)"
    )
    paired = all(method.comparison.paired for method in study.compared if method.comparison is not None)
    basis = (
        "Runs were compared image by image: exact paired intervals and McNemar's test."
        if paired
        else "Only counts per class are known of some runs: wider intervals and Fisher's test for these."
    )
    return (
        f"delta acc: accuracy of the class minus the {baseline} student's, in points, with exact 95 % intervals; a run "
        f"is compared with the {baseline} run of its seed where there is one. {basis} "
        "FDR 5 % (*): classes that are worse with a false discovery rate of 5 % over classes (Benjamini-Hochberg). "
        f"null: {null}.{_every(study, shown)}"
    )


def _every(study: Study, shown: Callable[[str], str]) -> str:
    found = records.every_record(study)
    if found is None:
        return ""
    shared = f", but these share the noise of the {shown(study.baseline)} runs" if study.vanilla else ""
    names = listed(list(map(shown, found["classes"][:10]))) + (" and others" if len(found["classes"]) > 10 else "")
    classes = counted(len(found["classes"]), "class", "classes") + (f" ({names})" if names else "")
    return (
        f" delta acc < 0 in every one of the {len(study.compared)} methods: {classes}; independent sets of these sizes "
        f"would share {found['expected_by_chance']:.1f} (p = {found['p_value']:.2g}){shared}."
    )


def _known(value: float) -> float:
    return value if value == value else 0.0


def _same_kind(one: Any, other: Any) -> bool:
    return bool(one.student) and (one.method, one.pair) == (other.method, other.pair)
