"""Read the answers of a network that was trained and tested elsewhere: a table with one row per test image.

Columns: `label` and `prediction`, both class indices or both class names; `path` or `index` of the image, so that files
can list the images in any order. Other columns, such as a confidence, are not used.
"""

from __future__ import annotations

import csv
import io
import posixpath
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tllm_plugin.analysis.loaded_run import LoadedRun
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.core.errors import ConfigError, FileFormatError
from tllm_plugin.core.paths import expanded
from tllm_plugin.core.predictions import Predictions
from tllm_plugin.runs import predictions_file
from tllm_plugin.runs.reading import open_file, read_arrays, read_text
from tllm_plugin.runs.run_folder import NAME

SUFFIXES = (".csv", ".npz", ".parquet")
_WHAT = "a table of answers"
_LABEL, _PREDICTION, _PATH, _INDEX = "label", "prediction", "path", "index"
# A data frame writes its own index under no name.
_UNNAMED = ""
_DELIMITERS = ",;\t"
_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")
_NUMBER = re.compile(r"[-+]?[0-9]*\.?[0-9]+([eE][-+]?[0-9]+)?")
# Representations of empty cells in CSV, NumPy and Parquet.
_UNKNOWN = {"", "nan", "NaN", "None", "<NA>"}
_MOST_CLASSES = 1_000_000


def is_answers(name: str) -> bool:
    """Return whether a name is the path of a table of predictions; files inside a run denote the run."""
    path = Path(expanded(name))
    return path.suffix in SUFFIXES and path.parent.name != NAME


def load_answers(name: str) -> LoadedRun:
    """Load the predictions in a file as a network of unknown training.

    Its method is the name of the file without suffix; for a file named `predictions`, the name of its folder.

    Args:
        name: Path of a `.csv`, `.npz` or `.parquet`.

    Raises:
        FileFormatError: The file cannot be read, or is no table of answers; the message names the column.
        ConfigError: Reading `.parquet` needs a package that is not installed.
    """
    path = Path(expanded(name))
    columns = _read(path)
    if isinstance(columns, Predictions):
        names, predictions, images = tuple(map(str, range(columns.num_classes))), columns, None
        indexed = True
    else:
        names, predictions, images = _parsed(columns, path)
        indexed = names == tuple(map(str, range(len(names))))
    return LoadedRun(
        name=str(path),
        method=path.stem if path.stem != "predictions" else path.resolve().parent.name,
        student="",
        teacher="",
        seed=None,
        class_names=names,
        result=TestResult.from_predictions(predictions, images),
        indexed=indexed,
    )


def _read(path: Path) -> Mapping[str, Sequence[Any]] | Predictions:
    if path.suffix == ".csv":
        return _read_csv(path)
    if path.suffix == ".parquet":
        return _read_parquet(path)
    arrays = read_arrays(path, _WHAT)
    if "schema" in arrays:  # A copy of a run's own file.
        return predictions_file.read_predictions(path)
    shapes = {name: array.shape for name, array in arrays.items() if name in (_LABEL, _PREDICTION, _PATH, _INDEX)}
    if wrong := [name for name, shape in shapes.items() if len(shape) != 1]:
        raise FileFormatError(f"Expected `{wrong[0]}` in {path} to have 1 dimension, but got {len(shapes[wrong[0]])}")
    return {name: arrays[name].tolist() for name in shapes}


def _read_csv(path: Path) -> Mapping[str, Sequence[str]]:
    text = read_text(path, _WHAT).removeprefix("\ufeff")
    heading = text.split("\n", 1)[0]
    delimiter = max(_DELIMITERS, key=heading.count)
    try:
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True) if row]
    except csv.Error as error:
        raise FileFormatError(f"Expected {path} to be {_WHAT}, but it is no CSV ({error})") from error
    names = [name.strip() for name in rows[0]] if rows else []
    for number, row in enumerate(rows[1:], start=2):
        if len(row) != len(names):
            raise FileFormatError(
                f"Expected every row of {path} to have the {len(names)} cells of its heading, but row {number} has "
                f"{len(row)}"
            )
    columns = list(zip(*rows[1:], strict=True)) or [()] * len(names)
    return {name: [cell.strip() for cell in column] for name, column in zip(names, columns, strict=True)}


def _read_parquet(path: Path) -> Mapping[str, Sequence[Any]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ConfigError(
            f"Expected pyarrow to be installed for {path}, but {error}; pip install 'tllm-plugin[parquet]' brings it"
        ) from error
    with open_file(path, _WHAT) as file:
        try:
            table = pyarrow.parquet.read_table(file)
        except (pyarrow.ArrowException, OSError, ValueError) as error:
            cause = (str(error).splitlines() or [type(error).__name__])[0]
            raise FileFormatError(f"Expected {path} to be {_WHAT}, but it is no Parquet ({cause})") from error
    wanted = [name for name in table.column_names if name in (_LABEL, _PREDICTION, _PATH, _INDEX)]
    return {name: table.column(name).to_pylist() for name in wanted}


def _parsed(
    columns: Mapping[str, Sequence[Any]], path: Path
) -> tuple[tuple[str, ...], Predictions, tuple[str, ...] | None]:
    """Return class names, predictions in the order of the images' names, and these names; None for row numbers."""
    if missing := [name for name in (_LABEL, _PREDICTION) if name not in columns]:
        raise FileFormatError(
            f"Expected {path} to have the columns `{_LABEL}` and `{_PREDICTION}`, but `{missing[0]}` is not among "
            f"{', '.join(f'`{name}`' for name in columns) or 'none'}"
        )
    given = {name: [str(value) for value in columns[name]] for name in (_LABEL, _PREDICTION)}
    rows = len(given[_LABEL])
    if not rows or len(given[_PREDICTION]) != rows:
        raise FileFormatError(
            f"Expected {path} to have at least one row, and as many predictions as labels, but got {rows} labels and "
            f"{len(given[_PREDICTION])} predictions"
        )
    for name, values in given.items():
        if unknown := _UNKNOWN & set(values):
            row = values.index(unknown.pop()) + 1
            raise FileFormatError(f"Expected `{name}` in {path} to be known in every row, but row {row} has none")
    order, images = _order(columns, rows, path)
    if all(_INTEGER.fullmatch(value) for values in given.values() for value in values):
        labels, predicted = (np.array([int(value) for value in values]) for values in given.values())
        for name, numbers in ((_LABEL, labels), (_PREDICTION, predicted)):
            if numbers.min() < 0 or numbers.max() >= _MOST_CLASSES:
                wrong = int(numbers.min()) if numbers.min() < 0 else int(numbers.max())
                raise FileFormatError(f"Expected `{name}` in {path} to be class indices from 0 on, but got {wrong}")
        names = tuple(map(str, range(int(labels.max()) + 1)))
    else:
        for name, values in given.items():
            if wrong_text := next((value for value in values if _NUMBER.fullmatch(value)), None):
                raise FileFormatError(
                    f"Expected `{_LABEL}` and `{_PREDICTION}` in {path} to be all class indices or all class names, "
                    f"but `{name}` has {wrong_text!r}"
                )
        names = tuple(sorted(set(given[_LABEL])))
        place = {name: index for index, name in enumerate(names)}
        labels, predicted = (np.array([place.get(value, -1) for value in values]) for values in given.values())
    predictions = Predictions(torch.from_numpy(labels[order]), torch.from_numpy(predicted[order]), len(names))
    return names, predictions, images


def _order(columns: Mapping[str, Sequence[Any]], rows: int, path: Path) -> tuple[Any, tuple[str, ...] | None]:
    """Return the order of the rows by image, and the names of the images; None if they are numbered from 0."""
    column = next((name for name in (_PATH, _INDEX, _UNNAMED) if name in columns), None)
    if column is None:
        return np.arange(rows), None
    keys = [str(value) for value in columns[column]]
    if len(keys) != rows:
        raise FileFormatError(f"Expected `{column}` in {path} to have {rows} rows, but got {len(keys)}")
    if column != _PATH:
        if wrong := next((key for key in keys if not _INTEGER.fullmatch(key)), None):
            raise FileFormatError(f"Expected `{_INDEX}` in {path} to be integers, but got {wrong!r}")
        numbers = np.array([int(key) for key in keys])
        order = np.argsort(numbers, kind="stable")
        if np.array_equal(numbers[order], np.arange(rows)):
            return order, None
    else:
        keys = [posixpath.normpath(key.replace("\\", "/")) for key in keys]
        common = posixpath.commonpath([posixpath.dirname(key) for key in keys]) if _are_alike(keys) else ""
        keys = [posixpath.relpath(key, common) if common else key for key in keys]
        order = np.array(sorted(range(rows), key=lambda row: keys[row]))
    images = tuple(keys[place] for place in order)
    if twice := next((one for one, other in zip(images, images[1:], strict=False) if one == other), None):
        raise FileFormatError(f"Expected every image in {path} once, but {twice!r} is there twice")
    return order, images


def _are_alike(keys: Sequence[str]) -> bool:
    return len({posixpath.isabs(key) for key in keys}) == 1
