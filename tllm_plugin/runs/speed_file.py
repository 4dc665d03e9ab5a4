"""`speed.json`: how a run was made faster, as it was chosen when it began."""

from __future__ import annotations

from pydantic.dataclasses import dataclass

from tllm_plugin.runs.records import Amount, Flag, List, Record, Text


@dataclass(frozen=True)
class SpeedRecord(Record):
    """Choices of `TLLM.SPEED: auto`; a resumed run continues with the same choices.

    Args:
        teacher: Kind of the teacher's forward pass, `plain` for the network as it is.
        student: Kind of the student's forward pass, likewise.
        teacher_features: Paths of the teacher's features that the distiller reads.
        remembers: Whether the teacher's answers are remembered.
        plain_seconds: Duration of forward and backward pass on a batch before.
        seconds: Duration with the choice.
        cost_seconds: Duration of measuring, compilation included.
        measured_on: Device, threads, versions, networks and batch that the choice holds for.
    """

    KIND = "speed"

    teacher: Text
    student: Text
    teacher_features: List[Text]
    remembers: Flag
    plain_seconds: Amount
    seconds: Amount
    cost_seconds: Amount
    measured_on: Text
