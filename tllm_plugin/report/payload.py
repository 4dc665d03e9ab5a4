"""Content of the page as compact JSON values, so that 1,000 classes add little to the plotting library's size."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from tllm_plugin.analysis.comparison import Count, Spread
from tllm_plugin.analysis.effects import effect_posterior
from tllm_plugin.analysis.loaded_run import LoadedRun
from tllm_plugin.analysis.results import Vector
from tllm_plugin.analysis.similarity import Similarity
from tllm_plugin.analysis.study import Method, Study, separate_vanilla
from tllm_plugin.analysis.teachers import TeacherRow, named, teacher_rows
from tllm_plugin.analysis.wording import counted
from tllm_plugin.report import findings, hardness
from tllm_plugin.version import __version__

Json = dict[str, Any]

SHARED_NOISE = (
    "Methods that are compared with the same vanilla runs share the noise of these runs, which alone increases the "
    "overlap."
)

#: Largest number of epochs per teaching curve, and of runs whose curves are shown.
MOST_EPOCHS = 60
MOST_CURVES = 8
_PICKS = 12


def payload(study: Study, similarity: Similarity | None) -> Json:
    """Return the content of the page."""
    classes = len(study.class_names)
    teachers = teacher_rows(study)
    teacher = _teacher(study, similarity, teachers)
    runs = len(study.vanilla) + sum(len(method.runs) for method in study.methods)
    curves = [curve for curve in map(_curve, _shown_curves(study)) if curve]
    methods = [_method(method, similarity) for method in study.methods]
    return {
        "title": f"What distillation did to {classes} classes",
        "subtitle": _subtitle(study, runs),
        "made": f"Written by tllm-plugin {__version__}. This page loads nothing from a network.",
        "classes": list(study.class_names),
        "findings": [*findings.planted(teachers), *findings.findings(study)],
        "next": findings.next_steps(study),
        "how": findings.reading_guide(study),
        "null_note": findings.null_note(study),
        "vanilla": [
            {"label": label, "accuracy": _numbers(study.accuracy_of(runs))}
            for label, runs in study.vanilla_students.items()
        ],
        "rows": [*_rows(study), *_teacher_rows(teachers, similarity)],
        "methods": methods,
        "counts": [_counts(method) for method in study.compared],
        "picks": _picks(study) if curves else [],
        "curves": curves,
        "overlap": _overlap(study),
        "every": _every(study),
        "teacher": teacher,
        "similar_note": _similar_note(similarity) if any("agreement" in method for method in methods) else "",
        **_tsne(study, similarity),
    }


def _subtitle(study: Study, runs: int) -> str:
    students = [method.runs[0] for method in study.methods] or study.vanilla
    pairs = ", ".join(sorted({run.pair for run in students if run.pair}))
    images = int(students[0].result.total.sum())
    parts = [pairs, counted(runs, "run", "runs"), counted(images, "test image", "test images")]
    return " \u00b7 ".join(part for part in parts if part)


def _rows(study: Study) -> list[Json]:
    rows: list[Json] = [
        {"label": label, "accuracy": _spread(Spread.of([run.result.accuracy for run in runs]))}
        for label, runs in study.vanilla_students.items()
    ]
    for method in study.methods:
        row: Json = {
            "label": method.label,
            "accuracy": _spread(Spread.of([run.result.accuracy for run in method.runs])),
            "flagged": None if method.flagged_count is None else _spread(method.flagged_count),
        }
        if method.comparison is not None:
            row |= {**_counts(method), "large": _count(method.comparison.largely_hurt_count)}
        rows.append(row)
    return rows


def _teacher_rows(teachers: list[TeacherRow], similarity: Similarity | None) -> list[Json]:
    rows: list[Json] = [
        {"label": row.label, "accuracy": None if row.accuracy is None else _spread(row.accuracy)} for row in teachers
    ]
    # The similarity covers the teacher of the first method only.
    if (
        len(teachers) == 1
        and teachers[0].planted
        and similarity is not None
        and similarity.teacher_accuracy is not None
    ):
        met = Spread.of([float(np.nanmean(similarity.teacher_accuracy))])
        rows.append({"label": f"the same, after planting {named(teachers[0].planted)}", "accuracy": _spread(met)})
    return rows


def _method(method: Method, similarity: Similarity | None) -> Json:
    content: Json = {"label": method.label, "runs": len(method.runs), "flagged": _epochs_flagged(method)}
    if len(method.runs) > 1 and method.flagged.any():
        content["flagged_runs"] = method.runs_that_flagged.tolist()
    comparison = method.comparison
    if comparison is not None:
        low, high = comparison.interval
        content |= {
            "delta": _numbers(comparison.delta),
            "low": _numbers(low),
            "high": _numbers(high),
            "q": _numbers(comparison.q_value, digits=5),
            "harm": _numbers(effect_posterior(comparison).harm.tolist()),
        }
    if similarity is not None and method.label in similarity.cka:
        content["cka"] = _numbers(similarity.cka[method.label], digits=3)
        content["agreement"] = _numbers(similarity.agreement[method.label])
    else:
        agreement = _holdout_agreement(method.runs[0])
        if agreement is not None:
            content["agreement"] = _numbers(agreement)
    return content


def _epochs_flagged(method: Method) -> list[int | None]:
    """Return for each class the first epoch after which any run flagged it; None if no run did."""
    result: list[int | None] = [None] * len(method.runs[0].class_names)
    for run in method.runs:
        for item in run.flags.classes if run.flags is not None else ():
            if item.flagged and item.epoch_flagged is not None:
                known = result[item.index]
                result[item.index] = item.epoch_flagged if known is None else min(known, item.epoch_flagged)
    return result


def _holdout_agreement(run: LoadedRun) -> Vector | None:
    curves = run.curves
    if curves is None or curves.samples_at(curves.epochs[-1]).agree is None:
        return None
    return curves.class_curves("agreement")[-1].numpy()


def _counts(method: Method) -> Json:
    comparison = method.comparison
    assert comparison is not None
    return {"hurt": _count(comparison.hurt_count), "sure": _count(comparison.significantly_worse_count)}


def _shown_curves(study: Study) -> list[tuple[str, LoadedRun]]:
    """Return labelled runs: the first seed of every method, then further seeds up to `MOST_CURVES`."""
    kinds = [("vanilla", study.vanilla), *((method.label, method.runs) for method in study.methods)]
    first = [(label, runs[0]) for label, runs in kinds if runs]
    more = [(f"{label}, {run.name}", run) for label, runs in kinds for run in runs[1:]]
    return [*first, *more][:MOST_CURVES]


def _curve(labelled: tuple[str, LoadedRun]) -> Json | None:
    label, run = labelled
    curves = run.curves
    if curves is None:
        return None
    rows = np.unique(np.linspace(0, len(curves) - 1, min(MOST_EPOCHS, len(curves))).round().astype(int))
    values = curves.class_curves("accuracy").numpy()[rows]
    # Steps of 1/255 are finer than one image of a hold-out.
    steps = np.nan_to_num(values * 255).round().astype(np.uint8)
    flagged = {item.index: item.epoch_flagged for item in (run.flags.classes if run.flags else ()) if item.flagged}
    if len(flagged) == len(run.class_names):
        flagged = {}  # All classes are flagged, as for label smoothing: lines in all curves would carry no information.
    return {
        "label": label,
        "epochs": [curves.epochs[row] for row in rows],
        "data": base64.b64encode(steps.tobytes()).decode("ascii"),
        "flagged": flagged,
    }


def _picks(study: Study) -> list[int]:
    """Return the classes to suggest for teaching curves: significantly worse ones, flagged ones, then the lowest delta
    acc."""
    ranked: dict[int, None] = {}
    for method in study.compared:
        if method.comparison is not None:
            ranked |= dict.fromkeys(np.nonzero(method.comparison.significantly_worse)[0].tolist())
    for method in study.methods:
        # The first run, whose curves are always shown.
        flags = method.runs[0].flags
        if flags is not None and len(flags.flagged) < flags.num_classes:
            ranked |= dict.fromkeys(flags.flagged)
    for method in study.compared:
        if method.comparison is not None:
            ranked |= dict.fromkeys(np.argsort(method.comparison.delta)[:_PICKS].tolist())
    return list(ranked)[:_PICKS]


def _overlap(study: Study) -> Json | None:
    methods = study.compared
    if len(methods) < 2 and not (methods and separate_vanilla(methods)):
        return None
    cells = [[study.overlap_of(row, column) for column in methods] for row in methods]
    note = (
        "Rows are compared with one vanilla run and columns with another, so that they share no noise; the diagonal "
        "shows how well the classes of one method are reproduced with another vanilla run."
        if separate_vanilla(methods)
        else "All methods are compared with the same vanilla run and share its noise, which alone gives overlap above "
        "chance. A second vanilla run removes this effect."
    )
    return {
        "labels": [method.label for method in methods],
        "jaccard": [_numbers([cell.jaccard for cell in row], digits=3) for row in cells],
        "expected": [_numbers([cell.expected for cell in row], digits=3) for row in cells],
        "p_value": [_numbers([cell.p_value for cell in row]) for row in cells],
        "note": note,
    }


def _every(study: Study) -> Json | None:
    if len(study.compared) < 2:
        return None
    found = study.hurt_in_every(study.compared)
    have = "has" if len(found.classes) == 1 else "have"
    of_all = counted(len(study.class_names), "class", "classes")
    note = (
        f"{len(found.classes)} of {of_all} {have} delta acc < 0 under every one of {len(study.compared)} methods; "
        f"independent sets of these sizes would share {found.expected:.1f} (p = {found.p_value:.3g}). {SHARED_NOISE}"
    )
    means = np.mean([method.comparison.delta for method in study.compared if method.comparison is not None], axis=0)
    return {"classes": sorted(found.classes, key=lambda index: means[index])[:50], "note": note}


def _teacher(study: Study, similarity: Similarity | None, teachers: list[TeacherRow]) -> Json | None:
    accuracy, origin, planted = None, "", [row for row in teachers if row.planted]
    column, included = "teacher", ""
    if similarity is not None and similarity.teacher_accuracy is not None:
        accuracy, origin = similarity.teacher_accuracy, "the teacher as used for distillation, on the test images"
        if planted:
            origin += f"; it was made wrong on purpose on {named(planted[0].planted)}"
            column, included = "teacher, made wrong", " (including planted classes)"
    elif study.teachers:
        name, run = next(iter(study.teachers.items()))
        accuracy, origin = run.result.class_accuracy, f"the run that trained {name}"
        if planted:
            origin += f", before planting {named(planted[0].planted)}"
    if accuracy is None:
        return None
    found = hardness.correlations(study, accuracy)
    told = f" Spearman's rank correlation with delta acc: {'; '.join(map(str, found))}." if found else ""
    note = (
        f"One point per class; outlined: significantly worse (FDR 5 %). Teacher's accuracy: {origin}.{told} If classes "
        "that are hard for the teacher were the undistillable ones, the correlation would be clearly positive."
    )
    return {
        "accuracy": _numbers(accuracy),
        "column": column,
        "heading": hardness.heading(found) + (included if found else ""),
        "note": note,
    }


def _similar_note(similarity: Similarity | None) -> str:
    if similarity is not None and similarity.cka:
        return (
            "Linear CKA (unbiased) of the pooled features, and the share of equal predictions, of teacher and first "
            f"student per class, on {similarity.images:,} test images. A CKA far below that of other classes means "
            "that the student represents the class differently from the teacher."
        )
    return "Share of equal predictions of teacher and student on the hold-out after the last epoch."


def _tsne(study: Study, similarity: Similarity | None) -> Json:
    if similarity is None or not similarity.pictures:
        return {"tsne": None, "tsne_note": ""}
    methods = [method for method in study.compared if method.runs[0].teacher]
    comparison = methods[0].comparison
    assert comparison is not None
    sure = comparison.significantly_worse
    hurt = sure if sure.any() else comparison.hurt
    pictures = [
        {
            "title": picture.title,
            "x": np.round(picture.positions[:, 0], 1).tolist(),
            "y": np.round(picture.positions[:, 1], 1).tolist(),
            "labels": picture.labels.tolist(),
            "hurt": np.nonzero(hurt)[0].tolist(),
        }
        for picture in similarity.pictures
    ]
    which = "significantly worse" if sure.any() else "delta acc < 0"
    return {
        "tsne": pictures,
        "tsne_legend": f"{which} under {methods[0].label}",
        "tsne_note": f"t-SNE of the penultimate layer on {len(pictures[0]['labels']):,} test images, the same in both. "
        f"Coloured: classes that are {which if sure.any() else 'below the vanilla student (' + which + ')'} under "
        f"{methods[0].label}. Distances between groups and their sizes mean nothing.",
    }


def _spread(spread: Spread) -> Json:
    return {"mean": round(spread.mean, 6), "std": _number(spread.std, 6), "n": spread.n}


def _count(count: Count) -> Json:
    null = count.null
    return {"found": _spread(count.found), "null": {"mean": round(null.mean, 2), "std": _number(null.std, 2)}}


def _numbers(values: Iterable[float] | npt.NDArray[np.floating], digits: int = 4) -> list[float | None]:
    return [_number(float(value), digits) for value in values]


def _number(value: float, digits: int) -> float | None:
    return round(value, digits) if math.isfinite(value) else None
