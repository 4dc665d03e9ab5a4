"""Read and write `curves.npz`: the hold-out history of a run, as plain arrays."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.atomic import write_npz
from tllm_plugin.runs.reading import read_npz
from tllm_plugin.runs.stamps import schema_of

KIND = "curves"
VERSION = 1

# Required arrays of version 1: number of dimensions and kinds of dtype in NumPy (i: signed, u: unsigned, b: bool).
_REQUIRED = {
    "num_classes": (0, "iu"),
    "labels": (1, "iu"),
    "sample_ids": (1, "iu"),
    "epochs": (1, "iu"),
    "rank": (2, "iu"),
    "true_prob": (2, "u"),
    "agree": (2, "b"),
}


def write_curves(path: str | os.PathLike[str], state: Mapping[str, Any]) -> None:
    """Write the state of `core.curves.Curves`, atomically.

    Args:
        state: Result of `Curves.state_dict`: tensors, arrays, numbers, strings or flat lists of these by name. Further
            entries are written as well.

    Raises:
        ValueError: A name is `schema` or `version`, which are reserved.
        TypeError: A value has another type.
        TLLMError: The system failed to write.
    """
    arrays = {name: _to_array(name, value) for name, value in state.items()}
    reserved = arrays.keys() & {"schema", "version"}
    if reserved:
        raise ValueError(f"Expected other names than {', '.join(sorted(reserved))} in the curves, but got them")
    write_npz(path, schema=schema_of(KIND), version=VERSION, **arrays)


def read_curves(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read a `curves.npz`; numbers and strings are returned as 0-d arrays, which `to_state` converts back.

    Returns:
        With n hold-out samples and E recorded epochs: `num_classes` (), `labels` (n,) class indices, `sample_ids` (n,)
        indices into the training data, `epochs` (E,), `rank` (E, n) rank of the true class, `true_prob` (E, n) its
        probability in steps of 1/255, `agree` (E or 0, n) agreement with the teacher; and all further entries.

    Raises:
        FileFormatError: The file is missing, damaged, of another kind or version, lacks an array, or has inconsistent
            arrays.
    """
    arrays = read_npz(path, KIND, VERSION)
    for name, (dims, kinds) in _REQUIRED.items():
        got = f"{arrays[name].dtype} of shape {arrays[name].shape}" if name in arrays else "nothing"
        if name not in arrays or arrays[name].ndim != dims or arrays[name].dtype.kind not in kinds:
            wanted = {"iu": "integers", "u": "unsigned integers", "b": "booleans"}[kinds]
            raise FileFormatError(
                f"Expected `{name}` in {path} to be {wanted} in {dims} dimensions, but got {got}; run again what "
                "wrote it"
            )
    samples, epochs, classes = arrays["labels"].size, arrays["epochs"].astype(np.int64), int(arrays["num_classes"])
    full, labels = (epochs.size, samples), arrays["labels"]
    fitting = {
        "sample_ids": arrays["sample_ids"].shape == (samples,),
        "labels": not samples or (labels.min() >= 0 and labels.max() < classes),
        "epochs": bool((np.diff(epochs) > 0).all()),
        "rank": arrays["rank"].shape == full,
        "true_prob": arrays["true_prob"].shape == full,
        "agree": arrays["agree"].shape in (full, (0, samples)),
    }
    wrong = [name for name, fits in fitting.items() if not fits]
    if wrong:
        raise FileFormatError(
            f"Expected {path} to be curves of {epochs.size} epochs in order, {samples} samples and {classes} classes, "
            f"but `{wrong[0]}` is not of these; run again what wrote it"
        )
    return arrays


def to_state(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Convert the result of `read_curves` to the input of `Curves.from_state`, the inverse of `write_curves`."""
    return {name: _from_array(array) for name, array in arrays.items()}


def _to_array(name: str, value: Any) -> np.ndarray:
    array = value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
    if array.dtype.kind not in "biufU":
        raise TypeError(f"Expected `{name}` of the curves to be a tensor, numbers or strings, but got {type(value)}")
    return array


def _from_array(array: np.ndarray) -> Any:
    return array.tolist() if array.ndim == 0 or array.dtype.kind == "U" else torch.from_numpy(array)
