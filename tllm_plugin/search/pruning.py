"""Stop trials that are behind by Optuna's rules, based on their accuracy on the search hold-out."""

from __future__ import annotations

from collections.abc import Callable

from optuna import TrialPruned
from optuna.pruners import BasePruner, HyperbandPruner, MedianPruner, SuccessiveHalvingPruner
from optuna.trial import Trial

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import ConfigError, unknown_name

#: Of the epochs that pass before a trial is judged.
WARMUP_SHARE = 1 / 3
_REDUCTION = 3


def _median(epochs: int) -> BasePruner:
    return MedianPruner(n_startup_trials=2, n_warmup_steps=int(WARMUP_SHARE * epochs))


def _halving(epochs: int) -> BasePruner:
    return SuccessiveHalvingPruner(min_resource=max(1, int(WARMUP_SHARE * epochs)), reduction_factor=_REDUCTION)


def _hyperband(epochs: int) -> BasePruner:
    least = max(1, epochs // _REDUCTION**2)
    return HyperbandPruner(min_resource=least, max_resource=epochs, reduction_factor=_REDUCTION)


_MAKERS: dict[str, Callable[[int], BasePruner]] = {"median": _median, "halving": _halving, "hyperband": _hyperband}


def make_pruner(name: str, epochs: int) -> BasePruner | None:
    """Return one of Optuna's pruners, or None for an empty name.

    Args:
        name: "median": below the median of at least two finished trials after the same epoch, from a third of the
            epochs on. "halving": not among the best third after a third of the epochs, and so on (asynchronous
            successive halving). "hyperband": the same from several starting points.
        epochs: Number of epochs of a trial.

    Raises:
        ConfigError: The name is unknown.
    """
    if not name:
        return None
    if name not in _MAKERS:
        raise ConfigError(unknown_name("--prune", name, _MAKERS))
    return _MAKERS[name](epochs)


def reporter(trial: Trial, epochs: int) -> Callable[[Curves], None]:
    """Return a `Watch` that reports a trial's score after each epoch, including shared ones, and prunes it if behind.

    Args:
        trial: Running trial.
        epochs: Number of epochs of a trial; after the last epoch nothing is pruned.
    """
    told: set[int] = set()

    def watch(curves: Curves) -> None:
        for epoch in curves.epochs:
            if epoch not in told:
                told.add(epoch)
                trial.report(curves.mean_accuracy(epoch), epoch)
        last = curves.epochs[-1]
        if last < epochs and trial.should_prune():
            raise TrialPruned(f"pruned after epoch {last}")

    return watch
