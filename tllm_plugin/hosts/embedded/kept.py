"""The checkpoints that a run keeps: `epoch_N`, `student_N`, and the best student until then."""

from __future__ import annotations

from pathlib import Path

_PATTERNS = ("epoch_*", "student_*", "tllm/student_best_holdout_*")


def remove_kept(folder: Path, *, after: int) -> None:
    """Remove what was kept after an epoch, by another run or by a process that was killed before it wrote `latest`.

    Args:
        folder: Of the run.
        after: The last epoch whose checkpoint stays.
    """
    for pattern in _PATTERNS:
        for path in folder.glob(pattern):
            epoch = path.name.rpartition("_")[2]
            if epoch.isdecimal() and int(epoch) > after:
                path.unlink(missing_ok=True)
