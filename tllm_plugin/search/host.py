"""Interface of a host for a search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from yacs.config import CfgNode

from tllm_plugin.core.curves import Curves
from tllm_plugin.core.errors import TLLMError
from tllm_plugin.hosts.run_spec import RunSpec, digest
from tllm_plugin.runs.run_folder import RunFolder
from tllm_plugin.search.space import Dimension, Values, with_values

SEARCH_FRACTION = "TLLM.HOLDOUT.SEARCH_FRACTION"
REFERENCE = "TLLM.DETECTOR.REFERENCE"

#: Is shown a trial's search curves after every epoch that it trains; an exception, such as `optuna.TrialPruned`, stops
#: the run and leaves it resumable.
Watch = Callable[[Curves], None]


@dataclass(frozen=True)
class Baselines:
    """Runs that trials are compared with and share epochs with.

    Args:
        taught: Run without detection (detector `none`); None unless requested.
        vanilla: Vanilla reference; None if no detector needs one or the config names one.
    """

    taught: RunFolder | None
    vanilla: RunFolder | None


class SearchHost(Protocol):
    """Host with a config, from which trials are made.

    Each training holds a lock in the folder of the search, so that workers never train the same run simultaneously.
    Finished runs are reused and unfinished runs continued.
    """

    @property
    def cfg(self) -> CfgNode:
        """Frozen config with a node TLLM and a search hold-out."""

    @property
    def folder(self) -> Path:
        """Folder of the search with its study, locks and outcome; the same for all workers."""

    @property
    def epochs(self) -> int:
        """Of a trial."""

    @property
    def seed(self) -> int:
        """Seed of the search's random numbers."""

    def run_of(self, values: Values) -> RunFolder:
        """Return the folder of a trial, whether it exists or not."""

    def prepare(self, *, taught: bool) -> Baselines:
        """Train the missing prerequisites of trials, and the run without detection if `taught` is set."""

    def train(
        self, values: Values, baselines: Baselines, others: Sequence[RunFolder], watch: Watch | None
    ) -> RunFolder:
        """Return the finished run of a trial.

        Args:
            values: Searched keys and their values.
            baselines: Result of `prepare`.
            others: Finished trials with which the trial may share epochs.
            watch: See `Watch`.

        Raises:
            NonFiniteLossError: The trial diverged.
            Exception: Raised by `watch`. Trained epochs are kept, and the next call continues from there.
        """

    def train_final(self, values: Values) -> RunFolder:
        """Return the finished run of the chosen values, trained on everything except the detection hold-out."""

    def next_command(self, values: Values) -> str:
        """Return the shell command that trains the chosen values."""


def override_words(values: Values, given: CfgNode) -> list[str]:
    """Return the arguments that set the chosen values and remove the search hold-out if `given` has one."""
    everything = {SEARCH_FRACTION: 0.0} if given.TLLM.HOLDOUT.SEARCH_FRACTION else {}
    return [word for key, value in {**everything, **values}.items() for word in (key, str(value))]


def tllm_digest(cfg: CfgNode) -> str:
    """Return an 8-character digest of all settings of a trial, including the content of a named reference."""
    content = ""
    if cfg.TLLM.DETECTOR.REFERENCE:
        with suppress(TLLMError, OSError):  # The training will report that it is missing.
            content = digest(RunFolder.find(cfg.TLLM.DETECTOR.REFERENCE).curves_npz.read_bytes())
    return RunSpec.of(cfg).trial_digest(content)


def around_digest(cfg: CfgNode, space: Sequence[Dimension]) -> str:
    """Return an 8-character digest of the settings of a trial that are not searched."""
    return tllm_digest(with_values(cfg, {item.key: "" for item in space}))
