"""`predictions.npz`: what the student of a run answered on every test image, so that runs can be paired by image."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.atomic import write_npz
from tllm_plugin.runs.reading import read_npz
from tllm_plugin.runs.stamps import schema_of

KIND = "predictions"
VERSION = 1


@dataclass(frozen=True, eq=False)
class PredictionsRecord:
    """Answers on the test data, in its order.

    Args:
        labels: (n,) int64, true classes.
        predictions: (n,) int64, the student's answers.
        num_classes: C.
    """

    labels: npt.NDArray[np.int64]
    predictions: npt.NDArray[np.int64]
    num_classes: int

    def counts(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """Return (C,) right answers and (C,) images per class."""
        right = self.labels[self.labels == self.predictions]
        return np.bincount(right, minlength=self.num_classes), np.bincount(self.labels, minlength=self.num_classes)


def write_predictions(path: str | os.PathLike[str], record: PredictionsRecord) -> None:
    """Write a record, atomically, in the smallest integers that hold the classes.

    Raises:
        TLLMError: The system refused to write.
    """
    kind = np.min_scalar_type(max(record.num_classes - 1, 0))
    write_npz(
        path,
        schema=schema_of(KIND),
        version=VERSION,
        num_classes=record.num_classes,
        labels=record.labels.astype(kind),
        predictions=record.predictions.astype(kind),
    )


def read_predictions(path: str | os.PathLike[str]) -> PredictionsRecord:
    """Read a record.

    Raises:
        FileFormatError: It is missing, truncated, of another kind or version, or its arrays do not fit together.
    """
    arrays = read_npz(path, KIND, VERSION)
    for name, dims in (("num_classes", 0), ("labels", 1), ("predictions", 1)):
        if name not in arrays or arrays[name].ndim != dims or arrays[name].dtype.kind not in "iu":
            raise FileFormatError(f"Expected `{name}` in {path} to be integers in {dims} dimensions; run again")
    classes = int(arrays["num_classes"])
    labels, predictions = (arrays[name].astype(np.int64) for name in ("labels", "predictions"))
    if labels.shape != predictions.shape:
        raise FileFormatError(
            f"Expected as many predictions as labels in {path}, but got {predictions.size} and {labels.size}"
        )
    for name, values in (("labels", labels), ("predictions", predictions)):
        if values.size and not (values.min() >= 0 and values.max() < classes):
            raise FileFormatError(f"Expected `{name}` in {path} to be from 0 to {classes - 1}, but they are not")
    return PredictionsRecord(labels, predictions, classes)
