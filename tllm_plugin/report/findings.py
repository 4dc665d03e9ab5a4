"""The report's sentences: what was found, what to try next, how to read the numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tllm_plugin.analysis.comparison import Comparison, Count
from tllm_plugin.analysis.findable import findable_of
from tllm_plugin.analysis.study import Method, Study
from tllm_plugin.analysis.teachers import TeacherRow, named
from tllm_plugin.analysis.wording import counted, listed

_NAMED = 5
_NO_CHOICE = (
    "Do not list classes that were found here, on test data: the same test data could not judge the run that follows."
)


def planted(teachers: Sequence[TeacherRow]) -> list[str]:
    """Return what a reader must know of teachers that were made wrong on purpose."""
    return [
        f"The teacher of {' and '.join(row.students)} was made wrong on purpose on "
        f"{counted(len(row.planted), 'class', 'classes')} ({named(row.planted)}) by DISTILLER.PLANT: that students "
        "lose these was planted and is no finding about distillation."
        for row in teachers
        if row.planted
    ]


def findings(study: Study) -> list[str]:
    """Return what a reader should know within a minute, the surest first."""
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
        if method.flagged.any() and not method.flagged.all():
            sentences.append(_flagged(study, method, method.comparison))
        reasons = [run.flags.reason for run in method.runs if run.flags is not None]
        if method.label.startswith("TLLM") and reasons and not method.flagged.any():
            sentences.append(
                f"{method.label} flagged no class ({reasons[0] or 'no reason was recorded'}): it is what it would have "
                "been without a detector."
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
    """Return what to try, with the settings that do it."""
    if not study.methods:
        return ["Train a student with a teacher (DISTILLER.TYPE KD, for example) and name its run too."]
    if not study.compared:
        return [
            "Train a vanilla student (DISTILLER.TYPE NONE TLLM.DETECTOR.TYPE none) and name its run too: delta acc is "
            "measured against it."
        ]
    steps = []
    if len(study.vanilla) == 1:
        steps.append(
            "Train a second vanilla student with another EXPERIMENT.SEED and name it too: only then does the null show "
            "how far two seeds differ."
        )
    detecting = [method for method in study.compared if method.label.startswith("TLLM")]
    for method in study.compared:
        comparison = method.comparison
        assert comparison is not None
        sure = comparison.surely_hurt
        if method not in detecting and sure.any() and not detecting:
            steps.append(
                f"{method.label} surely hurts {counted(int(sure.sum()), 'class', 'classes')} of the test data: run it "
                f"with TLLM.DETECTOR.TYPE reference, which looks for such classes on a hold-out. {_NO_CHOICE}"
            )
        missed = sure & ~method.flagged
        if method in detecting and missed.any():
            flags = method.runs[0].flags
            images = min((item.holdout_count for item in flags.classes), default=0) if flags else 0
            steps.append(
                f"{method.label} did not flag {counted(int(missed.sum()), 'class', 'classes')} that it surely hurts: a "
                f"hold-out of {images} images per class shows large drops only. Raise TLLM.HOLDOUT.FRACTION, or choose "
                f"TLLM.DETECTOR.ETA and FDR by `tllm search`, on a second hold-out. {_NO_CHOICE}"
            )
    if study.compared and not any(m.comparison is not None and m.comparison.surely_hurt.any() for m in study.compared):
        steps.append(
            "No class is surely hurt. With this many test images per class only large drops can be told from noise; "
            "more seeds (EXPERIMENT.SEED) or more test images per class show smaller ones."
        )
    if all(len(method.runs) == 1 for method in study.methods):
        steps.append("Every method has one seed. Differences in mean accuracy below a point need three or more each.")
    if not any(method.label.startswith("ESKD") for method in study.methods):
        steps.append(
            "Compare with ESKD (TLLM.DETECTOR.TYPE after): if taking the teacher from all classes late does as well, "
            "which classes are chosen does not matter."
        )
    return steps


def reading_guide(study: Study) -> list[str]:
    """Return what the numbers rest on."""
    paired = all(method.comparison.paired for method in study.compared if method.comparison is not None)
    basis = (
        "Students are compared image by image. A class's interval is exact: it covers the difference of the two "
        "networks' accuracies on images like these in at least 95 % of all test sets (Clopper-Pearson intervals of how "
        "many answers change and of how many changes are gains). The test is McNemar's, exact and one-sided."
        if paired
        else "Some runs kept counts per class only: their intervals join two Clopper-Pearson intervals and their "
        "test is Fisher's, both wider and weaker than a comparison image by image."
    )
    return [
        basis,
        f"Undistillable, as the paper counts: delta acc < 0, however little. {_between_vanilla(study)} That is why "
        "every count has its null.",
        "Surely hurt: the test's p-values after Benjamini-Hochberg, false discovery rate 5 % over classes. That is "
        "about these networks; another seed may give other classes.",
        "With several seeds, delta acc is the mean over pairs of runs (of one seed where seeds are known), intervals "
        "are the means of intervals at 95 % divided among the pairs, and p-values are merged so that dependence does "
        "no harm.",
        "Overlaps are judged by a permutation test over classes, by its exact distribution.",
    ]


def _between_vanilla(study: Study) -> str:
    counts = [method.comparison.hurt_count.null for method in study.compared if method.comparison is not None]
    null = next((null for null in counts if null.source == "vanilla"), None)
    if null is None:
        return "Two vanilla students that differ in nothing but their seed lose to each other on many classes, too."
    return (
        f"The vanilla students here, which differ in nothing but their seed, lose to each other on {_plain(null.mean)} "
        f"of {counted(len(study.class_names), 'class', 'classes')}, too."
    )


def null_note(study: Study) -> str:
    """Return what stands behind the nulls."""
    if not study.compared:
        return ""
    several = any(len(method.runs) > 1 for method in study.compared)
    seeds = (
        " Counts of several seeds are means \u00b1 standard deviations over pairs of runs; a class has a star below "
        "only if the seeds together say so."
        if several
        else ""
    )
    sizes = [len(runs) for runs in study.vanilla_students.values()]
    of_each = " of each student" if len(sizes) > 1 else ""
    pairs = sum(size * (size - 1) for size in sizes)
    between = f"the same count between vanilla runs{of_each} ({pairs} ordered pairs of runs), without a teacher"
    chance = (
        "what chance gives if every answer that changed were as likely a loss as a gain (mean \u00b1 standard deviation"
    )
    if pairs and 1 in sizes:
        between = f"{between}; for a student with one vanilla run {chance})"
    elif not pairs:
        between = f"{chance}; there is one vanilla run{of_each})"
    return f"Counts are of classes, beside how many classes there are; in brackets the null: {between}.{seeds}"


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
    null = "that vanilla runs lose to each other" if count.null.source == "vanilla" else "that chance gives"
    sentence = (
        f"Below it on {_plain(count.found.mean)} of {classes} classes, {against_null(count)} the "
        f"{_plain(count.null.mean)} {'class' if count.null.mean == 1 else 'classes'} {null}; "
    )
    sure = np.nonzero(comparison.surely_hurt)[0]
    if not len(sure):
        return sentence + "none is surely hurt."
    worst = sure[np.argsort(comparison.delta[sure])]
    return (
        sentence + f"surely hurt: {counted(len(sure), 'class', 'classes')}, namely {_names(study, worst, comparison)}."
    )


def _flagged(study: Study, method: Method, comparison: Comparison) -> str:
    flagged = method.flagged
    indices = np.nonzero(flagged)[0]
    where = f" in one or more of its {len(method.runs)} runs" if len(method.runs) > 1 else ""
    classes = counted(len(indices), "class", "classes")
    sentence = f"{method.label} took the teacher from {classes}{where} ({_names(study, indices)})"
    plain = [
        other
        for other in study.compared
        if other.comparison is not None and other is not method and f"({other.label.split(',')[0]})" in method.label
    ]
    mean = float(np.nanmean(comparison.delta[flagged]))
    if not plain or plain[0].comparison is None:
        return f"{sentence}; their mean delta acc is {_signed(mean)} points."
    before = plain[0].comparison
    sure = int(before.surely_hurt.sum())
    of_all = counted(sure, "class", "classes")
    among = (
        f", among them {int((before.surely_hurt & flagged).sum())} of the {of_all} that {plain[0].label} surely hurts"
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
