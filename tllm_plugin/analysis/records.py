"""Convert a study to plain records, which tables, JSON, CSV and the report print."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from tllm_plugin.analysis.comparison import Count, Spread
from tllm_plugin.analysis.effects import effect_posterior
from tllm_plugin.analysis.headroom import Headroom, headroom_of
from tllm_plugin.analysis.study import Study
from tllm_plugin.analysis.teachers import teacher_rows
from tllm_plugin.core.escaping import csv_text, markdown_text

Record = dict[str, Any]

VERSION = 2


def study_record(study: Study) -> Record:
    """Return the whole study as JSON values; undefined numbers are null."""
    return {
        "schema": "tllm/comparison",
        "version": VERSION,
        "num_classes": len(study.class_names),
        "vanilla": {"runs": [run.name for run in study.vanilla], "test_accuracy": vanilla_record(study)},
        "teachers": teacher_records(study),
        "hurt_in_every_method": every_record(study),
        "methods": method_records(study),
        "classes": class_records(study),
    }


def vanilla_record(study: Study) -> Record | None:
    """Return the test accuracy of the vanilla runs; None if every method has its own vanilla runs."""
    return _spread(Spread.of([run.result.accuracy for run in study.vanilla])) if study.vanilla else None


def teacher_records(study: Study) -> list[Record]:
    """Return one record per teacher; the accuracy is null if the run that trained it is not found."""
    return [
        {
            "teacher": row.label,
            "planted_classes": list(row.planted),
            "test_accuracy": None if row.accuracy is None else _spread(row.accuracy),
        }
        for row in teacher_rows(study)
    ]


def every_record(study: Study) -> Record | None:
    """Return the classes with delta acc < 0 in every method and their number by chance (the paper's Table 7)."""
    if len(study.compared) < 2:
        return None
    found = study.hurt_in_every(study.compared)
    return {
        "classes": [study.class_names[index] for index in found.classes],
        "expected_by_chance": found.expected,
        "p_value": found.p_value,
    }


def method_records(study: Study) -> list[Record]:
    """Return one record per method that has a vanilla run: accuracies and counts with their nulls."""
    records = []
    for method in study.compared:
        comparison = method.comparison
        assert comparison is not None
        found = headroom_of(comparison)
        records.append(
            {
                "method": method.label,
                "pair": method.runs[0].pair,
                "runs": [run.name for run in method.runs],
                "vanilla": [run.name for run in method.vanilla],
                "vanilla_accuracy": _spread(Spread.of([run.result.accuracy for run in method.vanilla])),
                "test_accuracy": _spread(comparison.accuracy),
                "paired_by_image": comparison.paired,
                "undistillable": _count(comparison.hurt_count),
                "undistillable_fdr_5_percent": _count(comparison.significantly_worse_count),
                "drop_over_5_points": _count(comparison.largely_hurt_count),
                "flagged": None if method.flagged_count is None else _spread(method.flagged_count),
                "headroom": None if found is None else headroom_record(found),
            }
        )
    return records


def class_records(study: Study) -> list[Record]:
    """Return one record per method and class, methods first."""
    records = []
    for method in study.compared:
        comparison = method.comparison
        assert comparison is not None
        low, high = comparison.interval
        effect = effect_posterior(comparison)
        effect_low, effect_high = effect.quantile(0.025).tolist(), effect.quantile(0.975).tolist()
        flagged = method.runs_that_flagged
        for index, name in enumerate(study.class_names):
            records.append(
                {
                    "method": method.label,
                    "index": index,
                    "class": name,
                    "test_images": int(comparison.changes[0].vanilla.total[index]),
                    "delta_acc": _number(comparison.delta[index]),
                    "low": _number(low[index]),
                    "high": _number(high[index]),
                    "std_over_seeds": _number(comparison.delta_std[index]),
                    "p_value": _number(comparison.p_value[index]),
                    "q_value": _number(comparison.q_value[index]),
                    "effect": _number(float(effect.mean[index])),
                    "effect_low": _number(effect_low[index]),
                    "effect_high": _number(effect_high[index]),
                    "probability_of_harm": _number(float(effect.harm[index])),
                    "flagged": bool(flagged[index]),
                    "runs": len(method.runs),
                    "runs_that_flagged": int(flagged[index]),
                }
            )
    return records


def headroom_record(found: Headroom) -> Record:
    """Return an estimate of the headroom as JSON values."""
    return {name: None if value != value else value for name, value in asdict(found).items()}


def as_csv(records: Sequence[Mapping[str, Any]]) -> str:
    """Return flat records as CSV with a header; null is an empty cell, and text is escaped by `csv_text`."""
    heading = list(records[0]) if records else ["method"]
    return "".join(_csv_line(row) for row in (heading, *(record.values() for record in records)))


def _csv_line(cells: Iterable[Any]) -> str:
    line = io.StringIO()
    # The writer quotes only what it takes for the end of a line itself, and others end theirs in both ways.
    csv.writer(line, lineterminator="\r\n").writerow(
        csv_text(cell) if isinstance(cell, str) else cell for cell in cells
    )
    return line.getvalue().removesuffix("\r\n") + "\n"


class Markup(str):
    """Markdown source, or text without special characters."""


def as_markdown(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; cells that are not `Markup` are escaped.

    >>> print(as_markdown(["a", "b"], [["1", "x|y"]]))
    | a | b |
    | --- | --- |
    | 1 | x\\|y |
    """
    texts = [[cell if isinstance(cell, Markup) else markdown_text(cell) for cell in row] for row in (heading, *rows)]
    lines = [texts[0], ["---"] * len(heading), *texts[1:]]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def percent(spread: Mapping[str, Any]) -> str:
    """Return "71.2 % +- 0.3 (n = 3)" of a `Spread` record of a fraction."""
    mean = f"{100 * spread['mean']:.1f} %"
    return mean if spread["std"] is None else f"{mean} +- {100 * spread['std']:.1f} (n = {spread['n']})"


def count_with_null(count: Mapping[str, Any], classes: int) -> str:
    """Return "44 of 100 (null 47)" of a `Count` record, with standard deviations where there are several."""
    return f"{plain(count['found'])} of {classes} (null {plain(count['null'])})"


def plain(value: Mapping[str, Any]) -> str:
    """Return "44" or "43.5 +- 2.1" of a `Spread` record of counts."""
    mean = value["mean"]
    text = f"{mean:.0f}" if float(mean).is_integer() else f"{mean:.1f}"
    return text if not value["std"] else f"{text} +- {value['std']:.1f}"


def _spread(spread: Spread) -> Record:
    return {"mean": spread.mean, "std": _number(spread.std), "n": spread.n}


def _count(count: Count) -> Record:
    return {
        "found": _spread(count.found),
        "null": {
            "mean": count.null.mean,
            "std": _number(count.null.std),
            "source": count.null.source,
            "pairs": count.null.pairs,
        },
        "permutation_p_value": _number(count.p_value),
    }


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None
