"""Run a search: train the trials, score them on the search hold-out, choose one, and record the evidence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor
from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import ConfigError, FileFormatError, TLLMError
from tllm_plugin.runs.curves_file import to_state
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.runs.search_file import FlaggedClass, SearchRecord, TrialRecord
from tllm_plugin.search.choice import NOISE_LEVEL, compare, estimate
from tllm_plugin.search.forking import read_fork
from tllm_plugin.search.host import Baselines, SearchHost, around_digest
from tllm_plugin.search.space import Dimension, Values

if TYPE_CHECKING:
    from optuna.trial import Trial

    from tllm_plugin.search.optuna_study import SharedStudy

#: Title of the baseline with the detector `none`.
TAUGHT = "without detection"


@dataclass(frozen=True)
class Outcome:
    """Result of a search.

    Args:
        record: Trials, choice and evidence.
        path: File of the record.
        final: Run that was trained with the chosen values; None unless requested.
    """

    record: SearchRecord
    path: Path
    final: RunFolder | None = None


def search(
    host: SearchHost,
    space: Sequence[Dimension],
    *,
    trials: int | None = None,
    storage: str = "",
    retrain: bool = False,
    prune: str = "",
    baseline: bool = True,
) -> Outcome:
    """Choose the values of some keys on the search hold-out, without using test data.

    Args:
        host: Host that trains the runs.
        space: Search space.
        trials: Number of trials for TPE; None tries every combination of the choices.
        storage: See `optuna_study.SharedStudy`.
        retrain: Whether to train the final student with the chosen values on everything except the detection hold-out.
        prune: See `pruning.make_pruner`.
        baseline: Whether to train a run without detection as a baseline.

    Raises:
        ConfigError: Config, space and data are incompatible.
        TLLMError: No trial finished.
    """
    # Importing Optuna takes a second, which other commands need not wait for.
    from optuna.exceptions import StorageInternalError

    try:
        return _searched(host, space, trials, storage, retrain, prune, baseline)
    except StorageInternalError as error:
        cause = str(error.__cause__ or error).splitlines()[0]
        raise TLLMError(f"Cannot use the storage {storage or f'in {host.folder}'}: {cause}") from error


def _searched(
    host: SearchHost,
    space: Sequence[Dimension],
    trials: int | None,
    storage: str,
    retrain: bool,
    prune: str,
    baseline: bool,
) -> Outcome:
    from tllm_plugin.search.optuna_study import SharedStudy
    from tllm_plugin.search.pruning import make_pruner, reporter

    problems = check_space(space, trials)
    if problems:
        raise ConfigError("\n".join(problems))
    epochs = host.epochs
    study = SharedStudy(
        storage,
        host.folder,
        space,
        trials,
        host.seed,
        make_pruner(prune, epochs),
        run_of=host.run_of,
        around=around_digest(host.cfg, space),
    )
    baselines = host.prepare(taught=baseline)

    def train(values: Values, trial: Trial) -> float:
        known = [host.run_of(other.params) for other in study.scored()]
        watch = reporter(trial, epochs) if prune else None
        run = host.train(values, baselines, known, watch)
        curves = _search_curves(run)
        if watch is not None:
            watch(curves)  # If a trial shares all epochs of another one, no epoch was trained.
        return estimate(_last_correct(curves), curves.labels, curves.num_classes).value

    study.work(train)
    record = collect(host, space, study, baselines)
    path = host.folder / f"search-{study.name}.json"
    record.write(path)
    chosen = record.chosen
    if chosen is None:
        failed = "; ".join(trial.error for trial in record.trials if trial.error)
        raise TLLMError(f"Expected at least one trial that finishes, but all failed: {failed}")
    return Outcome(record, path, host.train_final(chosen.values) if retrain else None)


def check_config(cfg: CfgNode) -> list[str]:
    """Check that a config with mdistiller's nodes can be searched; return error messages."""
    problems = []
    if cfg.SOLVER.TRAINER != "tllm":
        problems.append(f"Expected `SOLVER.TRAINER` to be tllm for a search, but got {cfg.SOLVER.TRAINER!r}")
    if cfg.DISTILLER.TYPE == "NONE":
        problems.append("Expected `DISTILLER.TYPE` to be a distiller for a search, but got 'NONE'")
    return problems


def check_space(space: Sequence[Dimension], trials: int | None) -> list[str]:
    """Check a search space; return error messages."""
    problems = []
    if not space:
        problems.append("Expected something to search, but got an empty space")
    ranges = [item.key for item in space if item.is_range]
    if trials is None and ranges:
        problems.append(f"Expected `--trials N` with a range, but got none for {', '.join(ranges)}")
    if trials is not None and trials < 1:
        problems.append(f"Expected `--trials` to be at least 1, but got {trials}")
    return problems


def collect(host: SearchHost, space: Sequence[Dimension], study: SharedStudy, baselines: Baselines) -> SearchRecord:
    """Read the results of the trials and choose among them."""
    from optuna.trial import TrialState

    trials = []
    for trial in study.finished():
        title, run = f"trial {trial.number}", host.run_of(trial.params)
        if "error" in trial.user_attrs:
            place = os.path.relpath(run.log_folder, host.folder)
            trials.append(TrialRecord(trial.number, title, dict(trial.params), place, error=trial.user_attrs["error"]))
        else:
            pruned_after = trial.last_step or 0 if trial.state == TrialState.PRUNED else 0
            trials.append(_describe(host, run, trial.number, title, dict(trial.params), pruned_after))
    others = []
    if baselines.vanilla is not None:
        others.append(replace(_describe(host, baselines.vanilla, -1, "vanilla", {}), taught_share=0.0))
    if baselines.taught is not None:
        others.append(_describe(host, baselines.taught, -1, TAUGHT, {}))
    chosen = choose(trials)
    best = next((trial for trial in trials if trial.number == chosen), None)
    if best is not None:
        trials, others = (_compared(host, best, items) for items in (trials, others))
    scored = next((item for item in (*trials, *others) if item.score is not None), None)
    curves = None if scored is None else _search_curves(RunFolder.inside(host.folder / scored.run))
    return SearchRecord(
        space=tuple(map(str, space)),
        sampler="grid" if study.trials is None else "tpe",
        num_classes=0 if curves is None else curves.num_classes,
        holdout_samples=0 if curves is None else int(curves.labels.numel()),
        fraction=host.cfg.TLLM.HOLDOUT.SEARCH_FRACTION,
        trials=tuple(trials),
        baselines=tuple(others),
        best=chosen,
        warnings=tuple(warnings_about(best, trials, others)),
    )


def choose(trials: Sequence[TrialRecord]) -> int | None:
    """Return the number of the best trial; ties go to the trial that teaches most and is thus closest to plain
    distillation."""
    finished = [(trial.score, trial.taught_share, -trial.number) for trial in trials if trial.score is not None]
    return -max(finished)[2] if finished else None


def warnings_about(
    best: TrialRecord | None, trials: Sequence[TrialRecord], baselines: Sequence[TrialRecord]
) -> list[str]:
    """Return the caveats of a choice, one sentence each."""
    if best is None:
        return []
    found = []
    rivals = [item for item in trials if item.number != best.number and item.score is not None]
    same = [item for item in rivals if item.flagged == best.flagged and item.score == best.score]
    close = [item for item in rivals if item not in same and item.p_value is not None and item.p_value >= NOISE_LEVEL]
    if close:
        found.append(
            f"the choice is within noise: the images of the search hold-out do not tell {best.title} from "
            f"{', '.join(item.title for item in close)} (paired test at 5 %; picking the best of several makes it look "
            "better still, and other training seeds are not covered)"
        )
    if same and best.flagged:
        found.append(
            f"{', '.join(item.title for item in same)} flagged the same classes at the same epochs as {best.title} and "
            "did as well"
        )
    for item in baselines:
        if item.p_value is None or item.score is None or best.score is None:
            continue
        if item.p_value >= NOISE_LEVEL:
            better = ", which did better there" if item.score > best.score else ""
            found.append(f"the images of the search hold-out do not tell {best.title} from `{item.title}`{better}")
        elif item.score > best.score:
            found.append(f"`{item.title}` did better on the search hold-out than every trial")
    if any(item.pruned_after for item in trials):
        found.append(
            "pruned trials were behind when they were stopped; the same command without --prune continues them"
        )
    if not any(item.flagged for item in trials):
        found.append("no trial flagged a class, so that all trials are the same run")
    return found


def _describe(
    host: SearchHost, run: RunFolder, number: int, title: str, values: Values, pruned_after: int = 0
) -> TrialRecord:
    curves = _search_curves(run)
    score = None if pruned_after else estimate(_last_correct(curves), curves.labels, curves.num_classes)
    # Some hosts write metrics only at the end of a run.
    seconds = run.read_metrics().seconds_per_epoch if run.metrics_json.exists() else ()
    flags = run.read_flags()
    shared_epochs, parent = read_fork(run)
    epochs = curves.epochs[-1]
    until = [epochs if item.epoch_flagged is None else item.epoch_flagged for item in flags.classes]
    return TrialRecord(
        number=number,
        title=title,
        values=values,
        run=os.path.relpath(run.log_folder, host.folder),
        score=None if score is None else score.value,
        standard_error=None if score is None else score.standard_error,
        curve=tuple(curves.class_curves().mean(1).tolist()),
        flagged=tuple(
            FlaggedClass(item.index, item.name, item.epoch_flagged)
            for item in flags.classes
            if item.epoch_flagged is not None
        ),
        taught_share=sum(until) / (len(until) * epochs),
        shared_epochs=shared_epochs,
        parent="" if parent is None else os.path.relpath(parent.log_folder, host.folder),
        epochs=epochs,
        seconds=sum(seconds),
        seconds_trained=sum(seconds[shared_epochs:]),
        pruned_after=pruned_after,
    )


def _compared(host: SearchHost, best: TrialRecord, items: Sequence[TrialRecord]) -> list[TrialRecord]:
    """Add to every item its paired comparison with the best trial."""
    reference = _search_curves(RunFolder.inside(host.folder / best.run))
    right = _last_correct(reference)
    result = []
    for item in items:
        if item.score is None:
            result.append(item)
            continue
        curves = _search_curves(RunFolder.inside(host.folder / item.run))
        if not curves.same_holdout(reference):
            raise ConfigError(f"Expected the search hold-out of {best.run} in {item.run}, but the samples differ")
        found = compare(right, _last_correct(curves), curves.labels, curves.num_classes)
        result.append(
            replace(
                item,
                difference=found.difference.value,
                difference_standard_error=found.difference.standard_error,
                p_value=found.p_value,
            )
        )
    return result


def _search_curves(run: RunFolder) -> Curves:
    try:
        return Curves.from_state(to_state(run.read_search_curves()))
    except FileFormatError as error:
        raise FileFormatError(f"{error}: remove {run.log_folder}, and the search trains that run again") from None


def _last_correct(curves: Curves) -> Tensor:
    """Return whether each sample was correct after the last epoch, (n,) bool."""
    return curves.samples_at(curves.epochs[-1]).correct
