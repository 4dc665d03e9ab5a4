"""`worklog.txt`, a run's numbers as text in mdistiller's way: `epoch: N`, then a line for each."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tllm_plugin.runs.atomic import append_text, write_text

_NAME = "worklog.txt"


def append_epoch(folder: Path, epoch: int, numbers: Mapping[str, float]) -> None:
    """Add the numbers of an epoch to the log of the run in a folder."""
    lines = [f"epoch: {epoch}", *(f"{name}: {value:.4f}" for name, value in numbers.items())]
    append_text(folder / _NAME, "\n".join(lines) + "\n")


def copy_until(epoch: int, source: Path, target: Path) -> None:
    """Let the log in the folder `target` be what that in `source` says of the epochs up to `epoch`; both may be one."""
    log = source / _NAME
    if log.exists():
        kept, _, _ = log.read_text(encoding="utf-8").partition(f"epoch: {epoch + 1}\n")
        write_text(target / _NAME, kept)
