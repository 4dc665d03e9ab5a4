"""Estimate which drops the detector of a finished run could have found, from its changed predictions."""

from __future__ import annotations

import torch

from tllm_plugin.analysis.loaded_run import LoadedRun, load_curves, reference_of
from tllm_plugin.core.power import CHANGED
from tllm_plugin.hosts.options import renamed
from tllm_plugin.hosts.power import Findable, findable, setting_of
from tllm_plugin.runs.run_folder import RunFolder


def findable_of(run: LoadedRun) -> Findable | None:
    """Return what the detector of a run could flag; None without a detector that can be simulated.

    The fraction of images on which two equally good runs differ is that of the classes that were not flagged, at the
    last epoch, where the reference is at hand.
    """
    if run.flags is None or run.flags.num_classes < 2:
        return None
    images = min(item.holdout_count for item in run.flags.classes)
    node = {**renamed(run.flags.detector.options), "TYPE": run.flags.detector.name}
    setting = setting_of(node, run.flags.num_classes, max(1, run.flags.epochs), _changed(run))
    return None if setting is None or images < 2 else findable(setting, images)


def _changed(run: LoadedRun) -> float:
    named = reference_of(run)
    own, other = run.curves, None if named is None else load_curves(RunFolder.find(named))
    if own is None or other is None or not own.same_holdout(other) or own.epochs[-1] not in other.epochs:
        return CHANGED
    now, before = own.samples_at(own.epochs[-1]).correct, other.samples_at(own.epochs[-1]).correct
    assert run.flags is not None
    flagged = torch.zeros(own.num_classes, dtype=torch.bool)
    flagged[list(run.flags.flagged)] = True
    judged = ~flagged[own.labels]
    return min(0.99, round(float((now != before)[judged].double().mean()), 2)) if judged.any() else CHANGED
