"""What a host must offer to be searched. The search knows nothing else of it."""

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
    """What trials are compared with, and begin with.

    Args:
        taught: Taught to the end (detector `none`); None if it was not asked for.
        vanilla: The reference; None where no detector needs one or the config names its own.
    """

    taught: RunFolder | None
    vanilla: RunFolder | None


class SearchHost(Protocol):
    """A host with a config, from which trials are made.

    Whatever trains holds a lock in the search's folder for as long as it does, so that workers do not train the same
    run at once; what is finished is used, what is not is continued.
    """

    @property
    def cfg(self) -> CfgNode:
        """Frozen; has a node TLLM, with a search hold-out."""

    @property
    def folder(self) -> Path:
        """Of the search: its study, its locks, its outcome; the same for all workers."""

    @property
    def epochs(self) -> int:
        """Of a trial."""

    @property
    def seed(self) -> int:
        """For what the search draws."""

    def run_of(self, values: Values) -> RunFolder:
        """Return the folder of a trial, whether it exists or not."""

    def prepare(self, *, taught: bool) -> Baselines:
        """Train what trials need and is not there, and the student that is `taught` to the end if asked for."""

    def train(
        self, values: Values, baselines: Baselines, others: Sequence[RunFolder], watch: Watch | None
    ) -> RunFolder:
        """Return the finished run of a trial.

        Args:
            values: Searched keys and their values.
            baselines: What `prepare` returned.
            others: Finished trials, which it may share a beginning with.
            watch: See `Watch`.

        Raises:
            NonFiniteLossError: The trial diverged.
            Exception: From `watch`. What was trained stays, and the next call goes on from there.
        """

    def train_final(self, values: Values) -> RunFolder:
        """Return the finished run of the chosen values on everything but the detection hold-out."""

    def next_command(self, values: Values) -> str:
        """Return the shell command that trains the chosen values."""


def override_words(values: Values, given: CfgNode) -> list[str]:
    """Return the words that set the chosen values on a command line, and no search hold-out where `given` has one."""
    everything = {SEARCH_FRACTION: 0.0} if given.TLLM.HOLDOUT.SEARCH_FRACTION else {}
    return [word for key, value in {**everything, **values}.items() for word in (key, str(value))]


def tllm_digest(cfg: CfgNode) -> str:
    """Return 8 characters that stand for everything that a trial may be told, a named reference's content included."""
    content = ""
    if cfg.TLLM.DETECTOR.REFERENCE:
        with suppress(TLLMError, OSError):  # Whoever trains will say that it is missing.
            content = digest(RunFolder.find(cfg.TLLM.DETECTOR.REFERENCE).curves_npz.read_bytes())
    return RunSpec.of(cfg).trial_digest(content)


def around_digest(cfg: CfgNode, space: Sequence[Dimension]) -> str:
    """Return 8 characters that stand for what a trial is told besides the values of the search."""
    return tllm_digest(with_values(cfg, {item.key: "" for item in space}))
