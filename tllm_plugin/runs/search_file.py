"""Read and write `search.json`: the trials of a search, the chosen one, and the evidence for the choice."""

from __future__ import annotations

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from tllm_plugin.runs.records import Amount, Count, Fraction, Inconsistent, Integer, List, Mapping, Number, Record, Text


@dataclass(frozen=True)
class FlaggedClass:
    """A class that a trial flagged.

    Args:
        index: Class index.
        name: Class name.
        epoch: Epoch after which the class was flagged; 0 is before training.
    """

    index: Count
    name: Text
    epoch: Count


@dataclass(frozen=True)
class TrialRecord:
    """One trained student, judged on the search hold-out.

    Args:
        number: Number of the trial in the study; -1 for a baseline.
        title: "trial 3", or the baseline's name.
        values: Searched keys and their values; empty for a baseline.
        run: Log folder, relative to the folder of the search file.
        score: Accuracy on the search hold-out after the last epoch, classes counting alike; None for a trial that
            failed or was pruned.
        standard_error: Standard error of the score due to the sampling of images.
        curve: The same score after every epoch.
        flagged: The classes that the run flagged.
        taught_share: Share of all class-epochs in which the class had its teacher; 0 for a vanilla student.
        shared_epochs: Number of first epochs taken from another run.
        parent: Log folder of that run, relative like `run`; empty without one.
        epochs: Epochs of the run; for a pruned trial, the epochs until it was pruned.
        seconds: Time in training and testing, shared epochs included.
        seconds_trained: The same without shared epochs.
        difference: Score of the best trial minus this score.
        difference_standard_error: Standard error of the difference, paired sample by sample.
        p_value: Exact two-sided McNemar p-value of the difference.
        error: Why a trial failed; empty otherwise.
        pruned_after: Epoch after which the trial was pruned; 0 if it was not.
    """

    number: Integer
    title: Text
    values: Mapping
    run: Text
    score: Fraction | None = None
    standard_error: Amount | None = None
    curve: List[Fraction] = ()
    flagged: List[FlaggedClass] = ()
    taught_share: Fraction = 0.0
    shared_epochs: Count = 0
    parent: Text = ""
    epochs: Count = 0
    seconds: Amount = 0.0
    seconds_trained: Amount = 0.0
    difference: Number | None = None
    difference_standard_error: Amount | None = None
    p_value: Fraction | None = None
    error: Text = ""
    pruned_after: Count = 0


@dataclass(frozen=True)
class SearchRecord(Record):
    """A search and its outcome.

    Args:
        space: Search space, one text per key.
        sampler: "grid" or "tpe".
        num_classes: C.
        holdout_samples: Samples of the search hold-out.
        fraction: Requested fraction of the data left by the detection hold-out that forms the search hold-out.
        trials: Trials in the order of their numbers.
        baselines: The vanilla student (if the search needed one) and the run without detection (unless it was skipped).
        best: Number of the chosen trial; None if none finished.
        warnings: Caveats of the choice.
    """

    KIND = "search"

    space: List[Text]
    sampler: Text
    num_classes: Count
    holdout_samples: Count
    fraction: Fraction
    trials: List[TrialRecord]
    baselines: List[TrialRecord]
    best: Count | None
    warnings: List[Text]

    @property
    def chosen(self) -> TrialRecord | None:
        """The best trial."""
        return next((trial for trial in self.trials if trial.number == self.best), None)

    @model_validator(mode="after")
    def _is_consistent(self) -> SearchRecord:
        if self.best is not None and self.chosen is None:
            raise Inconsistent("best", "the number of a trial", self.best)
        return self
