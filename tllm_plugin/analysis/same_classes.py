"""Convert runs to the same order and names of classes, or raise an error if that is impossible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from tllm_plugin.analysis.loaded_run import LoadedRun
from tllm_plugin.analysis.results import TestResult
from tllm_plugin.core.errors import ConfigError
from tllm_plugin.core.predictions import Predictions


def with_same_classes(runs: Sequence[LoadedRun]) -> list[LoadedRun]:
    """Return runs with the class names and their order of the first run that has both.

    A run that knows the numbers of its classes alone takes over the names; answers that know their names alone are put
    into the order.

    Raises:
        ConfigError: There is no run, or the runs are of different classes.
    """
    if not runs:
        raise ConfigError("Expected at least one run, but got none")
    first = min(runs, key=lambda run: (not run.indexed, _is_numbered(run)))
    return [_like(run, first) for run in runs]


def _like(run: LoadedRun, first: LoadedRun) -> LoadedRun:
    names = first.class_names
    if run.class_names == names:
        return run
    if run.indexed and first.indexed and _is_numbered(run) and len(run.class_names) == len(names):
        return replace(run, class_names=names)
    predictions = run.result.predictions
    if not run.indexed and predictions is not None and sorted(run.class_names) == sorted(names):
        places = torch.from_numpy(np.array([names.index(name) for name in run.class_names]))
        moved = Predictions(
            places[predictions.labels],
            torch.where(predictions.prediction < 0, -1, places[predictions.prediction]),
            predictions.num_classes,
        )
        return replace(
            run, class_names=names, indexed=True, result=TestResult.from_predictions(moved, run.result.images)
        )
    raise ConfigError(
        f"Expected runs on the same classes, but {first.name} has {len(names)} ({', '.join(names[:3])}, ...) and "
        f"{run.name} has {len(run.class_names)} ({', '.join(run.class_names[:3])}, ...)"
    )


def _is_numbered(run: LoadedRun) -> bool:
    return run.class_names == tuple(map(str, range(len(run.class_names))))
