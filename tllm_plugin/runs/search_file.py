"""`search.json`: every trial of a search, the choice among them, and on what evidence it was made."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from tllm_plugin.runs.fields import (
    FieldError,
    amount,
    count,
    field,
    integer,
    list_of,
    mapping,
    number,
    optional,
    share,
    text,
)

KIND = "search"
VERSION = 1


@dataclass(frozen=True)
class FlaggedClass:
    """A class that a trial flagged.

    Args:
        index: Class index.
        name: Class name.
        epoch: After which it was flagged; 0 is before training.
    """

    index: int
    name: str
    epoch: int

    @classmethod
    def from_json(cls, obj: object) -> FlaggedClass:
        """Rebuild one class; a `FieldError` says what is wrong."""
        return cls(field(obj, "index", count), field(obj, "name", text), field(obj, "epoch", count))


@dataclass(frozen=True)
class TrialRecord:
    """One trained student, judged on the search hold-out.

    Args:
        number: Of the trial in the study; -1 for a baseline.
        title: "trial 3", or the baseline's name.
        values: Searched keys and their values; empty for a baseline.
        run: Log folder, relative to the folder of the search file.
        score: Accuracy on the search hold-out after the last epoch, classes counting alike; None for a trial that
            failed or was pruned.
        standard_error: Of the score, from the samples alone.
        curve: The same score after every epoch.
        flagged: The classes that the run flagged.
        taught_share: Share of all class-epochs in which the class had its teacher; 0 for a vanilla student.
        shared_epochs: Epochs that were taken over from another run.
        parent: That run's log folder, relative like `run`; empty if there is none.
        epochs: Epochs of the run; of a pruned trial those that it was trained for.
        seconds: Time in training and testing, shared epochs included.
        seconds_trained: The same without shared epochs.
        difference: Score of the best trial minus this score.
        difference_standard_error: Of that, paired sample by sample.
        p_value: Exact two-sided McNemar p-value of that.
        error: Why a trial failed; empty otherwise.
        pruned_after: Epoch after which the trial was pruned; 0 if it was not.
    """

    number: int
    title: str
    values: dict[str, Any]
    run: str
    score: float | None = None
    standard_error: float | None = None
    curve: tuple[float, ...] = ()
    flagged: tuple[FlaggedClass, ...] = ()
    taught_share: float = 0.0
    shared_epochs: int = 0
    parent: str = ""
    epochs: int = 0
    seconds: float = 0.0
    seconds_trained: float = 0.0
    difference: float | None = None
    difference_standard_error: float | None = None
    p_value: float | None = None
    error: str = ""
    pruned_after: int = 0

    @classmethod
    def from_json(cls, obj: object) -> TrialRecord:
        """Rebuild one trial; a `FieldError` says what is wrong."""
        return cls(
            number=field(obj, "number", integer),
            title=field(obj, "title", text),
            values=field(obj, "values", mapping),
            run=field(obj, "run", text),
            score=field(obj, "score", optional(share)),
            standard_error=field(obj, "standard_error", optional(amount)),
            curve=field(obj, "curve", list_of(share)),
            flagged=field(obj, "flagged", list_of(FlaggedClass.from_json)),
            taught_share=field(obj, "taught_share", share),
            shared_epochs=field(obj, "shared_epochs", count),
            parent=field(obj, "parent", text),
            epochs=field(obj, "epochs", count),
            seconds=field(obj, "seconds", amount),
            seconds_trained=field(obj, "seconds_trained", amount),
            difference=field(obj, "difference", optional(number)),
            difference_standard_error=field(obj, "difference_standard_error", optional(amount)),
            p_value=field(obj, "p_value", optional(share)),
            error=field(obj, "error", text),
            # Nothing was pruned before there was this field.
            pruned_after=field(obj, "pruned_after", count) if "pruned_after" in mapping(obj) else 0,
        )


@dataclass(frozen=True)
class SearchRecord:
    """A search and its outcome.

    Args:
        space: What was searched, one text per key.
        sampler: "grid" or "tpe".
        num_classes: C.
        holdout_samples: Samples of the search hold-out.
        fraction: Share of what the detection hold-out leaves that was asked for as search hold-out.
        trials: In the order of their numbers.
        baselines: The vanilla student (where the search needed one) and the student that is taught to the end (unless
            it was left out).
        best: Number of the chosen trial; None if none finished.
        warnings: What to know before the choice is relied on.
    """

    space: tuple[str, ...]
    sampler: str
    num_classes: int
    holdout_samples: int
    fraction: float
    trials: tuple[TrialRecord, ...]
    baselines: tuple[TrialRecord, ...]
    best: int | None
    warnings: tuple[str, ...]

    @property
    def chosen(self) -> TrialRecord | None:
        """The best trial."""
        return next((trial for trial in self.trials if trial.number == self.best), None)

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, obj: object) -> SearchRecord:
        """Rebuild a record from what `to_json` returned.

        Raises:
            FieldError: A field is missing or of the wrong type, or `best` is none of the trials.
        """
        record = cls(
            space=field(obj, "space", list_of(text)),
            sampler=field(obj, "sampler", text),
            num_classes=field(obj, "num_classes", count),
            holdout_samples=field(obj, "holdout_samples", count),
            fraction=field(obj, "fraction", share),
            trials=field(obj, "trials", list_of(TrialRecord.from_json)),
            baselines=field(obj, "baselines", list_of(TrialRecord.from_json)),
            best=field(obj, "best", optional(count)),
            warnings=field(obj, "warnings", list_of(text)),
        )
        if record.best is not None and record.chosen is None:
            raise FieldError("the number of a trial", str(record.best), "best")
        return record
