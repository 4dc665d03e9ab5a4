"""A teacher and a vanilla student that the tests of the host share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.hosts.digits_runs import train
from tllm_plugin.runs.run_folder import RunFolder


@dataclass(frozen=True)
class Trained:
    """Runs that others build on.

    Args:
        teacher: A vanilla run of the teacher network.
        vanilla: A vanilla run of the student network, the detector's reference.
    """

    teacher: RunFolder
    vanilla: RunFolder

    @property
    def checkpoint(self) -> Path:
        """The teacher's weights."""
        return self.teacher.log_folder / "student_latest"

    @property
    def taught(self) -> tuple[str, ...]:
        """Overrides for a run with this teacher."""
        return ("DISTILLER.TEACHER_CHECKPOINT", str(self.checkpoint))

    @property
    def detecting(self) -> tuple[str, ...]:
        """Overrides for a run with this teacher and this reference whose naive rule flags classes soon."""
        reference = ("TLLM.DETECTOR.REFERENCE", str(self.vanilla.path))
        naive = ("TLLM.DETECTOR.ETA", "0.01", "TLLM.DETECTOR.CONFIDENCE", "0", "TLLM.DETECTOR.SMOOTHING", "0")
        return (*self.taught, *reference, *naive)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    folder = tmp_path_factory.mktemp("trained")
    vanilla = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none")
    teacher = train(folder, *vanilla, "DISTILLER.STUDENT", "digits_teacher", "EXPERIMENT.NAME", "teacher")
    return Trained(teacher, train(folder, *vanilla, "EXPERIMENT.NAME", "vanilla"))
