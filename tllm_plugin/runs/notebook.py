"""Show a run's classes as an HTML table, for notebooks."""

from __future__ import annotations

from html import escape

from tllm_plugin.core.escaping import visible
from tllm_plugin.runs.flags_file import ClassFlag, FlagsRecord

_HEADINGS = ("class", "flagged after epoch", "drop", "e-value", "hold-out")


def flags_html(title: str, record: FlagsRecord) -> str:
    """Return a heading and a table of all classes, flagged ones first.

    Args:
        title: Heading, as plain text.
        record: Flags of the run.
    """
    heading = "".join(f"<th>{name}</th>" for name in _HEADINGS)
    ordered = sorted(record.classes, key=lambda item: (not item.flagged, item.index))
    rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in _cells(item))}</tr>" for item in ordered)
    note = f"{len(record.flagged)} of {record.num_classes} classes flagged by {record.detector.name}"
    if record.reason:
        note += f": {record.reason}"
    return f"<p><b>{_text(title)}</b></p><table><tr>{heading}</tr>{rows}</table><p>{_text(note)}</p>"


def _cells(item: ClassFlag) -> tuple[str, ...]:
    name = _text(item.name)
    return (
        f"<b>{name}</b>" if item.flagged else name,
        "" if item.epoch_flagged is None else str(item.epoch_flagged),
        "" if item.drop is None else f"{item.drop:+.2f}",
        "" if item.e_value is None else f"{item.e_value:.3g}",
        f"{item.holdout_correct}/{item.holdout_count}",
    )


def _text(text: str) -> str:
    return escape(visible(text))
