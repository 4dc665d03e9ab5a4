"""Tables as a terminal shows them, read back."""

from __future__ import annotations


def columns(shown: str) -> list[str]:
    """Return what each column of the one table in `shown` says, without spaces, however its lines are broken."""
    lines = [line.replace("┃", "│").split("│")[1:-1] for line in shown.splitlines() if line.startswith(("┃", "│"))]
    return ["".join("".join(cells).split()) for cells in zip(*lines, strict=True)]
