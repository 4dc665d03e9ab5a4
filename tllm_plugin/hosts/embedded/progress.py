"""Show the progress of a training run: a bar on a terminal, and a few log lines elsewhere."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from types import TracebackType

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Column

from tllm_plugin.core.escaping import visible
from tllm_plugin.hosts.console import PlainConsole

logger = logging.getLogger(__name__)

_LINES_PER_RUN = 5


@dataclass(frozen=True)
class EpochReport:
    """Numbers of one epoch; accuracies are fractions. `test_accuracy` is None without a test."""

    epoch: int
    train_loss: float
    train_accuracy: float
    test_accuracy: float | None
    learning_rate: float

    def scalars(self) -> dict[str, float]:
        """Return all numbers that are not None by name, without the epoch."""
        return {name: value for name, value in asdict(self).items() if name != "epoch" and value is not None}


class RunProgress:
    """Context manager that shows the progress of a run, unless only warnings are logged.

    Args:
        title: Name of the run.
        epochs: Number of epochs of the whole run.
        steps_per_epoch: Number of batches per epoch.
        epochs_done: Number of epochs that a resumed run has trained before.
    """

    def __init__(self, title: str, epochs: int, steps_per_epoch: int, epochs_done: int) -> None:
        self.title = visible(title)
        self.epochs = epochs
        console = PlainConsole(stderr=True)  # Results on standard output stay clean.
        self.on_terminal = console.is_terminal
        # These columns fit into 80 characters, so that the time left is never cut off.
        self._bar = Progress(
            TextColumn("{task.description}", markup=False, table_column=Column(width=8, no_wrap=True)),
            BarColumn(bar_width=6),
            TextColumn("{task.fields[note]}", markup=False),
            TimeRemainingColumn(),
            TextColumn("left"),
            console=console,
            disable=not (self.on_terminal and logger.isEnabledFor(logging.INFO)),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task(
            self.title, total=epochs * steps_per_epoch, completed=epochs_done * steps_per_epoch, note=""
        )

    def __enter__(self) -> RunProgress:
        self._bar.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def step(self) -> None:
        """Count one batch."""
        self._bar.advance(self._task)

    def epoch(self, report: EpochReport) -> None:
        """Show the numbers of an epoch."""
        note = f"epoch {report.epoch}/{self.epochs} loss {report.train_loss:.3f} train {report.train_accuracy:.1%}"
        if report.test_accuracy is not None:
            note += f" test {report.test_accuracy:.1%}"
        self._bar.update(self._task, note=note)
        every = max(1, self.epochs // _LINES_PER_RUN)
        if not self.on_terminal and (report.epoch % every == 0 or report.epoch == self.epochs):
            logger.info("%s: %s", self.title, note)
