"""Optuna study shared by several workers, which take over the trials of workers that died."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna import TrialPruned
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.pruners import BasePruner
from optuna.samplers import TPESampler
from optuna.trial import FrozenTrial, Trial, TrialState

from tllm_plugin.core.errors import FileFormatError, NonFiniteLossError
from tllm_plugin.runs.locks import held, is_held
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.space import Dimension, Values, grid, shown_value
from tllm_plugin.search.storage import open_storage

logger = logging.getLogger(__name__)
optuna.logging.set_verbosity(optuna.logging.WARNING)

#: How many workers may die on a trial, without one more epoch being written, before it counts as failed.
MAX_TAKEOVERS = 3
# Attributes of a trial that was queued again: its predecessor, the number of workers that died, its epochs so far.
_AFTER, _TAKEOVERS, _EPOCHS = "after", "takeovers", "epochs"
_POLL_SECONDS = 0.5


class SharedStudy:
    """Trials of a search, shared by all workers with the same storage and folder.

    A worker holds a file lock during its lifetime. A running trial whose worker's lock is free was abandoned: the next
    worker that looks for work queues it again, and it continues from its last checkpoint. The same holds for trials
    that were interrupted, that failed for an external reason, and whose run was removed.

    Args:
        storage: `journal:FILE`, `sqlite:///FILE` or another database address that Optuna supports; empty for a journal
            in the folder.
        folder: Folder of the search; the same for all workers.
        space: Search space; each space has a study of its own.
        trials: Number of trials of TPE; None for the grid of all choices.
        seed: Seed of TPE.
        pruner: Pruner that is asked after every epoch. Without one, trials that an earlier search pruned are queued
            again and continued.
        run_of: Function from values to the run of a trial.
        around: Digest of further settings that results depend on and that are not in the folder's name; each has a
            study of its own.

    Raises:
        ConfigError: The storage cannot be opened.
    """

    def __init__(
        self,
        storage: str,
        folder: Path,
        space: Sequence[Dimension],
        trials: int | None = None,
        seed: int = 0,
        pruner: BasePruner | None = None,
        run_of: Callable[[Values], RunFolder] | None = None,
        around: str = "",
    ) -> None:
        self.folder = folder
        self.run_of = run_of
        self.space = tuple(space)
        self.trials = trials
        self.seed = seed
        self.worker = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        described = f"{folder.name} {around} {'grid' if trials is None else 'tpe'} {' '.join(map(str, self.space))}"
        self.name = hashlib.sha256(described.encode()).hexdigest()[:8]
        folder.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self.study = optuna.create_study(
                storage=open_storage(storage, folder),
                study_name=f"tllm-{self.name}",
                direction="maximize",
                pruner=pruner or optuna.pruners.NopPruner(),
                load_if_exists=True,
            )
            if trials is None:
                for values in grid(self.space):
                    self.study.enqueue_trial(values, skip_if_exists=True)
            if pruner is None:
                for trial in self.finished():
                    if trial.state == TrialState.PRUNED and not self._newer(trial):
                        logger.info("trial %d, which was pruned, is queued again", trial.number)
                        self._queue_again(trial)
            for trial in self.finished():
                if run_of is not None and trial.state == TrialState.COMPLETE and not run_of(trial.params).is_finished():
                    logger.info("trial %d, whose run is gone, is queued again", trial.number)
                    self._queue_again(trial)

    def work(self, train: Callable[[Values, Trial], float]) -> None:
        """Run trials until none is waiting or running in another worker.

        Args:
            train: Function from values to score; `NonFiniteLossError` fails the trial but not the search, `TrialPruned`
                prunes it.
        """
        own = self._worker_file(self.worker)
        with held(own):
            while True:
                trial = self._begin()
                if trial is not None:
                    self._finish(trial, train)
                elif self._under_way():
                    time.sleep(_POLL_SECONDS)
                else:
                    break
        own.unlink(missing_ok=True)

    def finished(self) -> list[FrozenTrial]:
        """Return the trials that have a score, failed or were pruned, in the order of their numbers.

        A pruned trial that was continued is replaced by its continuation; trials whose run was removed are omitted.
        """
        done = self._in_state(TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        numbers, again = {trial.number for trial in done}, self._queued_again()
        return [
            trial
            for trial in done
            if (trial.state == TrialState.COMPLETE and trial.number not in again)
            or "error" in trial.user_attrs
            or (trial.state == TrialState.PRUNED and not any(new.number in numbers for new in self._newer(trial)))
        ]

    def scored(self) -> list[FrozenTrial]:
        """Return the completed trials whose runs exist."""
        return [trial for trial in self.finished() if trial.state == TrialState.COMPLETE]

    def _queue_again(self, trial: FrozenTrial, takeovers: int = 0) -> None:
        """Queue the values of a trial once; requires the lock."""
        if trial.number not in self._queued_again():
            params = {**trial.system_attrs.get("fixed_params", {}), **trial.params}
            attributes = {_AFTER: trial.number, _TAKEOVERS: takeovers, _EPOCHS: self._epochs_written(trial)}
            self.study.enqueue_trial(params, user_attrs=attributes)

    def _queued_again(self) -> set[int]:
        """Return the numbers of the trials whose values were queued again."""
        attributes = [trial.user_attrs for trial in self.study.get_trials(deepcopy=False)]
        return {known[_AFTER] for known in attributes if _AFTER in known}

    def _epochs_written(self, trial: FrozenTrial) -> int:
        """Return the number of epochs that the trial's run has written; 0 if unknown."""
        if self.run_of is None or not trial.params:
            return 0
        try:
            return len(self.run_of(trial.params).read_curves()["epochs"])
        except FileFormatError:  # The file is missing or damaged.
            return 0

    def _newer(self, trial: FrozenTrial) -> list[FrozenTrial]:
        """Return the trials that were queued later with the values of a trial."""
        return [
            other
            for other in self.study.get_trials(deepcopy=False)
            if other.number > trial.number
            and (other.params or other.system_attrs.get("fixed_params")) == trial.params
            and (other.state != TrialState.FAIL or "error" in other.user_attrs)
        ]

    def _alone(self) -> Any:
        return held(self.folder / "locks" / "study")

    def _worker_file(self, worker: str) -> Path:
        return self.folder / "workers" / worker

    def _begin(self) -> Trial | None:
        """Draw the next trial; None if none should be started now."""
        with self._alone():
            self._take_over()
            waiting = bool(self._in_state(TrialState.WAITING))
            if not waiting and (self.trials is None or len(self.finished()) + len(self._under_way()) >= self.trials):
                return None
            # Seeded by the number of the trial, so that neither workers nor a continued search repeat random numbers.
            drawn = len(self.study.get_trials(deepcopy=False))
            startup = max(3, (self.trials or 0) // 3)
            self.study.sampler = TPESampler(
                seed=self.seed * 100_003 + drawn, n_startup_trials=min(10, startup), constant_liar=True
            )
            trial = self.study.ask({item.key: distribution(item) for item in self.space})
            trial.set_user_attr("worker", self.worker)
            return trial

    def _finish(self, trial: Trial, train: Callable[[Values, Trial], float]) -> None:
        values = dict(trial.params)
        shown = ", ".join(f"{key.rpartition('.')[2]} {shown_value(value)}" for key, value in values.items())
        logger.info("trial %d: %s", trial.number, shown)
        try:
            score = train(values, trial)
        except NonFiniteLossError as error:
            logger.warning("trial %d failed: %s", trial.number, error)
            trial.set_user_attr("error", str(error))
            self.study.tell(trial, state=TrialState.FAIL)
        except TrialPruned as pruned:
            logger.info("trial %d: %s", trial.number, pruned)
            self.study.tell(trial, state=TrialState.PRUNED)
        except BaseException:  # Ctrl-C, a full disk or a wrong config: neither a failed trial nor a dead worker.
            with self._alone():
                frozen = self.study.get_trials(deepcopy=False)[trial.number]
                self._queue_again(frozen, int(frozen.user_attrs.get(_TAKEOVERS, 0)))
                self.study.tell(trial, state=TrialState.FAIL)
            raise
        else:
            self.study.tell(trial, score)

    def _take_over(self) -> None:
        """Queue the trials of dead workers again; requires the lock, under which every running trial has a worker's
        name."""
        for trial in self._under_way():
            worker = trial.user_attrs.get("worker")
            if worker == self.worker or (worker is not None and is_held(self._worker_file(worker))):
                continue
            grew = self._epochs_written(trial) > trial.user_attrs.get(_EPOCHS, 0)
            takeovers = 1 if grew else int(trial.user_attrs.get(_TAKEOVERS, 0)) + 1
            if takeovers > MAX_TAKEOVERS:
                message = f"given up: {takeovers} workers died on it"
                Trial(self.study, trial._trial_id).set_user_attr("error", message)
            else:
                logger.info("trial %d was abandoned by its worker and is taken over", trial.number)
                self._queue_again(trial, takeovers)
            self.study.tell(trial.number, state=TrialState.FAIL)
            if worker is not None:
                self._worker_file(worker).unlink(missing_ok=True)

    def _under_way(self) -> list[FrozenTrial]:
        return self._in_state(TrialState.RUNNING)

    def _in_state(self, *states: TrialState) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False, states=states)


def distribution(item: Dimension) -> BaseDistribution:
    """Return Optuna's distribution for a dimension."""
    if item.choices:
        return CategoricalDistribution(item.choices)
    if item.whole:
        return IntDistribution(int(item.low), int(item.high), log=item.log)
    return FloatDistribution(item.low, item.high, log=item.log)
