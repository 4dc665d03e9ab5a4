"""Read and write `predictions.npz`: predictions for all test images, with which runs are compared image by image."""

from __future__ import annotations

import os

import numpy as np
import torch

from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.core.predictions import Predictions
from tllm_plugin.runs.atomic import write_npz
from tllm_plugin.runs.reading import read_npz
from tllm_plugin.runs.stamps import schema_of

KIND = "predictions"
VERSION = 1


def write_predictions(path: str | os.PathLike[str], predictions: Predictions) -> None:
    """Write labels and predicted classes atomically, with the smallest sufficient integer type.

    Raises:
        TLLMError: The system failed to write.
    """
    classes, predicted = predictions.num_classes, predictions.prediction.numpy()
    # A network may have more outputs than classes.
    outputs = int(predicted.max(initial=classes - 1)) + 1
    kind = np.min_scalar_type(max(outputs - 1, 0))
    write_npz(
        path,
        schema=schema_of(KIND),
        version=VERSION,
        num_classes=classes,
        labels=predictions.labels.numpy().astype(kind),
        predictions=predicted.astype(kind),
        **({"num_outputs": outputs} if outputs > classes else {}),
    )


def read_predictions(path: str | os.PathLike[str]) -> Predictions:
    """Read labels and predicted classes; ranks and probabilities are not in the file.

    Raises:
        FileFormatError: The file is missing, truncated, of another kind or version, or has inconsistent arrays.
    """
    arrays = read_npz(path, KIND, VERSION)
    outputs = "num_outputs" if "num_outputs" in arrays else "num_classes"
    for name, dims in (("num_classes", 0), (outputs, 0), ("labels", 1), ("predictions", 1)):
        if name not in arrays or arrays[name].ndim != dims or arrays[name].dtype.kind not in "iu":
            raise FileFormatError(f"Expected `{name}` in {path} to be integers in {dims} dimensions; run again")
    classes = int(arrays["num_classes"])
    labels, predictions = (arrays[name].astype(np.int64) for name in ("labels", "predictions"))
    if labels.shape != predictions.shape:
        raise FileFormatError(
            f"Expected as many predictions as labels in {path}, but got {predictions.size} and {labels.size}"
        )
    bounds = (classes, int(arrays[outputs]))
    for name, values, bound in zip(("labels", "predictions"), (labels, predictions), bounds, strict=True):
        if values.size and not (values.min() >= 0 and values.max() < bound):
            raise FileFormatError(f"Expected `{name}` in {path} to be from 0 to {bound - 1}, but they are not")
    return Predictions(torch.from_numpy(labels), torch.from_numpy(predictions), classes)
