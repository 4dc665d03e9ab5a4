"""Sentences of the report: findings, next steps, and how to read the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tllm_plugin.analysis.comparison import Comparison, Count
from tllm_plugin.analysis.findable import findable_of
from tllm_plugin.analysis.headroom import headroom_of
from tllm_plugin.analysis.study import Method, Study
from tllm_plugin.analysis.teachers import TeacherRow, named
from tllm_plugin.analysis.wording import counted, listed

_NAMED = 5
_NO_CHOICE = "Do not choose classes by this report: it uses test data, which could then not evaluate the next run."


def planted(teachers: Sequence[TeacherRow]) -> list[str]:
    """Return one warning per teacher with planted classes."""
    return [
        f"The teacher of {' and '.join(row.students)} was made wrong on purpose on "
        f"{counted(len(row.planted), 'class', 'classes')} ({named(row.planted)}) by DISTILLER.PLANT: losses on these "
        "classes were planted and are no finding about distillation."
        for row in teachers
        if row.planted
    ]


def findings(study: Study) -> list[str]:
    """Return the main results of each method."""
    sentences = []
    for method in study.methods:
        if method.comparison is None:
            flags = method.runs[0].flags
            if flags is not None:
                sentences.append(
                    f"{method.label}: {len(flags.flagged)} of {flags.num_classes} classes flagged by "
                    f"`{flags.detector.name}`. There is no vanilla run of the same student to compare with."
                )
            continue
        sentences.append(f"{_accuracy(study, method, method.comparison)} {_hurt(study, method, method.comparison)}")
        sentences += _headroom(method, method.comparison)
        if method.flagged.any() and not method.flagged.all():
            sentences.append(_flagged(study, method, method.comparison))
        reasons = [run.flags.reason for run in method.runs if run.flags is not None]
        if method.label.startswith("TLLM") and reasons and not method.flagged.any():
            sentences.append(
                f"{method.label} flagged no class ({reasons[0] or 'no reason was recorded'}): it is the run that it "
                "would have been without a detector."
            )
        sentences += _could_flag(method)
    return sentences


def _could_flag(method: Method) -> list[str]:
    """Return what the detector of a method could have found with its hold-out."""
    found = findable_of(method.runs[0])
    if found is None:
        return []
    if found.warning:
        return [f"{method.label}: {found.warning}."]
    images = counted(found.images, "hold-out image", "hold-out images")
    return [f"What {method.label} could find, with {images} per class: {found.sentence()}."]


def next_steps(study: Study) -> list[str]:
    """Return what to try next, with the settings to use."""
    if not study.methods:
        return ["Train a student with a teacher (DISTILLER.TYPE KD, for example) and add its run to the report."]
    if not study.compared:
        return [
            "Train a vanilla student (DISTILLER.TYPE NONE TLLM.DETECTOR.TYPE none) and add its run: delta acc is "
            "measured against it."
        ]
    steps = []
    if len(study.vanilla) == 1:
        steps.append(
            "Train a second vanilla student with another EXPERIMENT.SEED and add it: only then does the null show "
            "how much two seeds differ."
        )
    detecting = [method for method in study.compared if method.label.startswith("TLLM")]
    for method in study.compared:
        comparison = method.comparison
        assert comparison is not None
        sure = comparison.significantly_worse
        if method not in detecting and sure.any() and not detecting:
            steps.append(
                f"{method.label} makes {counted(int(sure.sum()), 'class', 'classes')} significantly worse (FDR 5 %): "
                f"run it with TLLM.DETECTOR.TYPE reference, which finds such classes on a hold-out. {_NO_CHOICE}"
            )
        missed = sure & ~method.flagged
        if method in detecting and missed.any():
            flags = method.runs[0].flags
            images = min((item.holdout_count for item in flags.classes), default=0) if flags else 0
            steps.append(
                f"{method.label} did not flag {counted(int(missed.sum()), 'class', 'classes')} that it makes "
                f"significantly worse (FDR 5 %): a hold-out of {images} images per class reveals large drops only. "
                "Increase TLLM.HOLDOUT.FRACTION, or choose TLLM.DETECTOR.ETA and FDR with `tllm search`, on a second "
                f"hold-out. {_NO_CHOICE}"
            )
    comparisons = [method.comparison for method in study.compared if method.comparison is not None]
    if comparisons and not any(comparison.significantly_worse.any() for comparison in comparisons):
        steps.append(
            "No class is significantly worse (FDR 5 %). With this number of test images per class, only large drops "
            "can be distinguished from noise; more seeds (EXPERIMENT.SEED) or more test images reveal smaller ones."
        )
    if all(len(method.runs) == 1 for method in study.methods):
        steps.append(
            "Every method has one seed. Differences in mean accuracy below one point need three or more seeds each."
        )
    if not any(method.label.startswith("ESKD") for method in study.methods):
        steps.append(
            "Compare with ESKD (TLLM.DETECTOR.TYPE after), which stops teaching all classes late: if it performs as "
            "well, the choice of classes does not matter."
        )
    return steps


def reading_guide(study: Study) -> list[str]:
    """Return explanations of the intervals, tests and counts."""
    paired = all(method.comparison.paired for method in study.compared if method.comparison is not None)
    basis = (
        "Students are compared image by image. The interval of a class is exact: it contains the difference of the "
        "two networks' accuracies on such images for at least 95 % of all test sets (Clopper-Pearson intervals of the "
        "share of predictions that change and of the share of gains among them). The test is McNemar's exact one-sided "
        "test."
        if paired
        else "Some runs recorded only counts per class: their intervals combine two Clopper-Pearson intervals, and "
        "their test is Fisher's. Both are less sensitive than a comparison image by image."
    )
    return [
        basis,
        f"A class counts as undistillable, as in the paper, if delta acc < 0, no matter by how much. "
        f"{_between_vanilla(study)} Therefore every count is given with its null.",
        "Significantly worse: selected by the Benjamini-Hochberg procedure at a false discovery rate of 5 % over "
        "classes. The statement is about these networks; with another seed, other classes may be selected.",
        "With several seeds, delta acc is the mean over pairs of runs (of equal seeds, if seeds are known), intervals "
        "are means of the pairs' intervals at a level that gives 95 % together, and p-values are merged by a rule that "
        "is valid under any dependence.",
        "P(harm) is the probability that the effect on a class is negative, from a model of all classes together, in "
        "which most classes have similar effects and single ones may differ by much. With several seeds it is a "
        "statement about the method; with one, about these two networks.",
        "Overlaps are tested by a permutation test over classes, with its exact distribution.",
    ]


def _between_vanilla(study: Study) -> str:
    counts = [method.comparison.hurt_count.null for method in study.compared if method.comparison is not None]
    null = next((null for null in counts if null.source == "vanilla"), None)
    if null is None:
        return "Two vanilla students that differ only in their seed also lose to each other on many classes."
    return (
        f"The vanilla students here, which differ only in their seed, lose to each other on {_plain(null.mean)} of "
        f"{counted(len(study.class_names), 'class', 'classes')}."
    )


def null_note(study: Study) -> str:
    """Return an explanation of the counts and their nulls."""
    if not study.compared:
        return ""
    several = any(len(method.runs) > 1 for method in study.compared)
    seeds = (
        " Counts of several seeds are means \u00b1 standard deviations over pairs of runs; a class has a star below "
        "only if it is significant over all seeds together."
        if several
        else ""
    )
    sizes = [len(runs) for runs in study.vanilla_students.values()]
    of_each = " of each student" if len(sizes) > 1 else ""
    pairs = sum(size * (size - 1) for size in sizes)
    between = f"the same count between vanilla runs{of_each} ({pairs} ordered pairs of runs), without a teacher"
    chance = (
        "the count expected by chance if every changed prediction were equally likely a loss or a gain (mean \u00b1 "
        "standard deviation"
    )
    if pairs and 1 in sizes:
        between = f"{between}; for a student with one vanilla run {chance})"
    elif not pairs:
        between = f"{chance}; there is one vanilla run{of_each})"
    return f"Counts are numbers of classes, out of all classes; in brackets the null: {between}.{seeds}"


def _accuracy(study: Study, method: Method, comparison: Comparison) -> str:
    vanilla = float(np.mean([run.result.accuracy for run in method.vanilla]))
    found = comparison.accuracy
    runs = f" (mean of {len(method.vanilla)} runs)" if len(method.vanilla) > 1 else ""
    seeds = f" (n = {found.n}, \u00b1 {100 * found.std:.1f})" if found.n > 1 else ""
    return (
        f"{method.label}: {found.mean:.1%} test accuracy{seeds}, {_signed(found.mean - vanilla)} points against the "
        f"vanilla student's {vanilla:.1%}{runs}."
    )


def _hurt(study: Study, method: Method, comparison: Comparison) -> str:
    count, classes = comparison.hurt_count, len(study.class_names)
    null = "between vanilla runs" if count.null.source == "vanilla" else "expected by chance"
    sentence = (
        f"It is below the vanilla student on {_plain(count.found.mean)} of {classes} classes, {against_null(count)} "
        f"the {_plain(count.null.mean)} {'class' if count.null.mean == 1 else 'classes'} {null}; "
    )
    sure = np.nonzero(comparison.significantly_worse)[0]
    if not len(sure):
        return sentence + "no class is significantly worse (FDR 5 %)."
    worst = sure[np.argsort(comparison.delta[sure])]
    return (
        sentence + f"{counted(len(sure), 'class is', 'classes are')} significantly worse (FDR 5 %): "
        f"{_names(study, worst, comparison)}."
    )


def _headroom(method: Method, comparison: Comparison) -> list[str]:
    """Return a sentence about the headroom if several runs show the noise of training."""
    room = headroom_of(comparison)
    if room is None or room.source != "seeds":
        return []
    low, ceiling, high = (100 * end for end in (room.ceiling.low, room.ceiling.value, room.ceiling.high))
    return [
        f"The true effects of {method.label} differ between classes by {100 * room.spread.value:.1f} points (standard "
        f"deviation, with noise removed). Restoring every class that it makes worse would raise the mean accuracy by "
        f"{ceiling:.1f} points (95 % interval {low:.1f} to {high:.1f})."
    ]


def _flagged(study: Study, method: Method, comparison: Comparison) -> str:
    flagged = method.flagged
    indices = np.nonzero(flagged)[0]
    where = f" in one or more of its {len(method.runs)} runs" if len(method.runs) > 1 else ""
    classes = counted(len(indices), "class", "classes")
    sentence = f"{method.label} stopped teaching {classes}{where} ({_names(study, indices)})"
    plain = [
        other
        for other in study.compared
        if other.comparison is not None and other is not method and f"({other.label.split(',')[0]})" in method.label
    ]
    mean = float(np.nanmean(comparison.delta[flagged]))
    if not plain or plain[0].comparison is None:
        return f"{sentence}; their mean delta acc is {_signed(mean)} points."
    before = plain[0].comparison
    sure = int(before.significantly_worse.sum())
    of_all = counted(sure, "class", "classes")
    among = (
        f", among them {int((before.significantly_worse & flagged).sum())} of the {of_all} that {plain[0].label} makes "
        "significantly worse"
    )
    return (
        f"{sentence}{among if sure else ''}; "
        f"mean delta acc of the flagged classes: {_signed(float(np.nanmean(before.delta[flagged])))} points under "
        f"{plain[0].label}, {_signed(mean)} now."
    )


def against_null(count: Count) -> str:
    """Return "no more than", "not clearly more than" or "more than", by the p-value or two standard deviations."""
    if count.found.mean <= count.null.mean:
        return "no more than"
    if count.p_value == count.p_value:
        clear = count.p_value <= 0.05
    else:
        spread = count.null.std if count.null.std == count.null.std else 0.0
        clear = count.found.mean > count.null.mean + 2.0 * spread
    return "more than" if clear else "not clearly more than"


def _names(study: Study, indices: Sequence[int] | np.ndarray, comparison: Comparison | None = None) -> str:
    shown = []
    for index in list(indices)[:_NAMED]:
        drop = f" ({_signed(float(comparison.delta[index]))})" if comparison is not None else ""
        shown.append(f"{study.class_names[index]}{drop}")
    more = len(indices) - _NAMED
    return listed(shown) + (f" and {more} more" if more > 0 else "")


def _signed(fraction: float) -> str:
    return f"{100 * fraction:+.1f}".replace("-", "\u2212")


def _plain(value: float) -> str:
    return f"{value:.0f}" if value.is_integer() else f"{value:.1f}"
