"""Real runs on digits, small, that the networks of a report can be loaded from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.hosts.digits_runs import train


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("digits")
    plain = ("DISTILLER.TYPE", "NONE", "TLLM.DETECTOR.TYPE", "none")
    teacher = train(folder, *plain, "DISTILLER.STUDENT", "digits_teacher", "EXPERIMENT.NAME", "teacher")
    vanilla = train(folder, *plain, "EXPERIMENT.NAME", "vanilla")
    taught = ("DISTILLER.TEACHER_CHECKPOINT", str(teacher.log_folder / "student_latest"))
    kd = train(folder, *taught, "TLLM.DETECTOR.TYPE", "none", "EXPERIMENT.NAME", "kd", "DISTILLER.PLANT.CLASSES", "[3]")
    runs = {"teacher": teacher, "vanilla": vanilla, "kd": kd}
    return {name: run.log_folder for name, run in runs.items()}
