"""Keep the student of the epoch that is best on the hold-out, never ahead of the host's checkpoint."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

from torch import nn

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.data_identity import DataIdentity
from tllm_plugin.runs import data_file
from tllm_plugin.runs.atomic import save_torch, write_link
from tllm_plugin.runs.reading import load_torch
from tllm_plugin.runs.run_folder import RunFolder


class BestStudent:
    """Weights of the student after the epoch with the highest class-balanced hold-out accuracy.

    A new best is written under another name and moved into place by `settle`, after the host has written its
    checkpoint: a run that is killed in between resumes from an earlier checkpoint, for which another student may be
    the best.

    Args:
        run: Folder of the run.
        curves: Hold-out history of the run.
        data: Identity of the training data, stored with the weights.
    """

    def __init__(self, run: RunFolder, curves: Curves, data: DataIdentity) -> None:
        self._run = run
        self._curves = curves
        self._data = data
        self._accuracy: dict[int, float] = {}
        self._unsaved: dict[str, Any] | None = None
        self._recovered = False

    def note(self, epoch: int, accuracy: float, student: nn.Module, predictor: nn.Module | None = None) -> None:
        """Copy the student if this epoch has the best class-balanced hold-out accuracy so far.

        Args:
            epoch: The scored epoch.
            accuracy: Its accuracy.
            student: The student.
            predictor: Module of the method that makes the logits from the student's output, if there is one.
        """
        if not len(self._curves.labels):
            return
        self._accuracy[epoch] = accuracy
        for earlier in self._curves.epochs:
            if earlier not in self._accuracy:
                self._accuracy[earlier] = self._curves.mean_accuracy(earlier)
        if accuracy >= max(self._accuracy.values()):
            # The weights go on changing before it is written.
            weights = deepcopy(student.state_dict())
            of_data = {data_file.KEY: data_file.to_text(self._data)}
            more = {} if predictor is None else {"predictor": deepcopy(predictor.state_dict())}
            self._unsaved = {"model": weights, **more, "epoch": epoch, "holdout_accuracy": accuracy, **of_data}

    def write(self, epoch: int, *, kept: bool) -> None:
        """Write a new best student.

        Args:
            epoch: The last scored epoch.
            kept: Whether the host keeps its checkpoint of this epoch; the best student so far is then kept as well.
        """
        self.recover()
        best = self._run.student_best_holdout
        if self._unsaved is not None:
            best = self._run.student_best_next
            save_torch(best, self._unsaved)
            self._unsaved = None
        if kept and best.exists():
            write_link(self._run.student_best_until(epoch), best)

    def settle(self) -> None:
        """Move the best student into place if `write` wrote a new one."""
        if self._run.student_best_next.exists():
            self._run.student_best_next.replace(self._run.student_best_holdout)

    def recover(self) -> None:
        """Complete `settle` for a process that was killed after it had written its checkpoint."""
        if self._recovered:
            return
        self._recovered = True
        path = self._run.student_best_next
        if path.exists():
            left: Any = load_torch(path, "a student")
            if left["epoch"] in self._curves.epochs:
                self.settle()
            else:
                path.unlink()
