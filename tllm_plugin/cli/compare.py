"""`tllm compare`: classes that distillation made worse, with significance and the counts expected under the null."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from tllm_plugin.analysis import records
from tllm_plugin.analysis.effects import class_effects, effect_posterior
from tllm_plugin.analysis.headroom import HEADING, as_rows, headroom_of
from tllm_plugin.analysis.loaded_run import LoadedRun
from tllm_plugin.analysis.named_networks import EvaluationData, load_named
from tllm_plugin.analysis.networks import with_predictions
from tllm_plugin.analysis.records import Markup
from tllm_plugin.analysis.study import Study, build_comparison, build_pairs
from tllm_plugin.analysis.wording import counted, listed
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.escaping import markdown_text, visible
from tllm_plugin.hosts.console import PlainConsole, write_json_result, write_result

_HEADROOM = "headroom of a class-wise rule, in points"
_EVERY = "classes below vanilla for every student, delta acc in points"
_SUMMARY = (
    "method",
    "runs",
    "test accuracy",
    "classes with delta acc < 0",
    "classes at FDR 5 %",
    "classes < -5 points",
    "classes flagged",
)


def run(options: argparse.Namespace) -> None:
    """Compare the runs, print tables and write files.

    Raises:
        ConfigError: One of the named runs or checkpoints cannot be compared.
    """
    study = _paired(options) if options.pairs else _with_one_baseline(options)
    files = (options.json, options.csv, options.markdown)
    if "-" not in files:
        show(study, options.classes, PlainConsole())
    if options.json:
        write_json_result(options.json, records.study_record(study))
    if options.csv:
        write_result(options.csv, records.as_csv(records.class_records(study)))
    if options.markdown:
        write_result(options.markdown, markdown(study, options.classes))


def _with_one_baseline(options: argparse.Namespace) -> Study:
    baseline, *others_by_name = _load([options.vanilla, *options.others], options)
    others = [found for runs in others_by_name for found in runs]
    # The other names may include further seeds of the vanilla student.
    known = {str(found.folder) for found in baseline if found.folder is not None}
    more = [found for found in others if _same_kind(found, baseline[0]) and str(found.folder) not in known]
    others = [found for found in others if not _same_kind(found, baseline[0])]
    if not others:
        raise ConfigError(
            f"Expected a run of another method than {baseline[0].method} to compare, but got only seeds of it"
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
        raise ConfigError("Expected `--mean` and `--std` together, but got only one of them")
    data = EvaluationData(options.data, options.image_size, options.class_order, options.mean, options.std)
    loaded = [load_named(name, data) for name in names]
    return [with_predictions(runs) for runs in loaded] if options.answers else loaded


def show(study: Study, most: int, console: Console) -> None:
    """Print both tables and their explanation."""
    worst = class_rows(study, most)
    for title, heading, rows in (
        (f"{len(study.class_names)} classes", summary_heading(study), summary_rows(study)),
        (f"the {counted(len(worst), 'class', 'classes')} with the lowest delta acc", class_heading(study), worst),
        (_HEADROOM, list(HEADING), headroom_rows(study)),
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
    room = records.as_markdown(list(HEADING), headroom_rows(study))
    return f"{summary}\n\n{classes}\n\n{_HEADROOM}:\n\n{room}\n\n{lost}{explanation(study, markdown_text)}\n"


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


def headroom_rows(study: Study) -> list[list[str]]:
    """Return one row per method with at least three tested classes, for `HEADING`."""
    found = [
        (method.label, room)
        for method in study.compared
        if method.comparison is not None and (room := headroom_of(method.comparison)) is not None
    ]
    return [list(row) for row in as_rows(found)]


def class_heading(study: Study) -> list[str]:
    """Return the column names of `class_rows`."""
    vanilla = [study.baseline] if study.vanilla else []
    return ["class", *vanilla, *(f"{method.label}: delta acc [95 %], P(harm)" for method in study.compared)]


def class_rows(study: Study, most: int) -> list[list[str]]:
    """Return the classes with the lowest delta acc in any method, in points; `*` marks significant ones (FDR 5 %)."""
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
            mark = "*" if comparison.significantly_worse[index] else ""
            interval = f"[{100 * low:+.0f}, {100 * high:+.0f}]"
            harm = f"{effect_posterior(comparison).harm[index]:.2f}"
            cells.append(Markup(f"{mark}{100 * comparison.delta[index]:+.1f} {interval}, {harm}"))
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
        else "the count expected by chance if every changed prediction were equally likely a loss or a gain (there is "
        f"one {baseline} run; a second one with another seed would show how much seeds differ)"
    )
    sources = {class_effects(method.comparison).source for method in study.compared if method.comparison is not None}
    effect = (
        "the method makes the class worse, over seeds"
        if sources == {"seeds"}
        else "the class is worse in these networks, on images like the test images; other seeds may differ"
    )
    single = "" if sources == {"seeds"} else " (both are too large for a single pair of runs)"
    paired = all(method.comparison.paired for method in study.compared if method.comparison is not None)
    basis = (
        "Runs were compared image by image: exact paired intervals and McNemar's test."
        if paired
        else "Some runs recorded only counts per class; their intervals are wider and their test is Fisher's."
    )
    return (
        f"delta acc: accuracy of the class minus the {baseline} student's, in points, with exact 95 % intervals; a run "
        f"is compared with the {baseline} run of its seed if there is one. {basis} "
        "FDR 5 % (*): significantly worse classes at a false discovery rate of 5 % over classes (Benjamini-Hochberg). "
        f"null: {null}. P(harm): probability that {effect}, from a model of all classes together. Headroom: spread of "
        "the effects over classes with noise removed; the ceiling is the gain in mean accuracy if every class below "
        f"the {baseline} student had that student's accuracy{single}.{_every(study, shown)}"
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
