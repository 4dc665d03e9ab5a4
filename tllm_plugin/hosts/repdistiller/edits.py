"""Edits of a source text at places that its syntax tree names."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from typing import Any


class Edits:
    """Collect edits and apply them all at once.

    Args:
        source: The source that the syntax tree was made from.
    """

    def __init__(self, source: str) -> None:
        self.lines = source.splitlines(keepends=True)
        # (row, start, end, text) in bytes, rows from 0. An end of -1 is that of the line, a start of -1 inserts lines.
        self.edits: list[tuple[int, int, int, str]] = []

    def wrap(self, call: ast.Call, by: str) -> None:
        """Turn `f(x)` into `by(f, x)`."""
        function = ast.unparse(call.func)
        self.replace(call.func, by)
        first: Any = call.args[0]
        self.edits.append((first.lineno - 1, first.col_offset, first.col_offset, f"{function}, "))

    def replace(self, node: Any, text: str) -> None:
        """Replace an expression; its further lines are emptied instead of removed, so that line numbers stay."""
        extra = node.end_lineno - node.lineno
        if not extra:
            self.edits.append((node.lineno - 1, node.col_offset, node.end_col_offset, text))
            return
        self.edits.append((node.lineno - 1, node.col_offset, -1, text))
        for row in range(node.lineno, node.end_lineno):
            last = row == node.end_lineno - 1
            self.edits.append((row, 0, node.end_col_offset if last else -1, ""))

    def before(self, statement: ast.stmt, *lines: str) -> None:
        """Insert lines before a statement, with its indentation."""
        self._insert(statement.lineno - 1, statement.col_offset, lines)

    def after(self, statement: ast.stmt, *lines: str) -> None:
        """Insert lines after a statement, with its indentation."""
        self._insert(statement.end_lineno or statement.lineno, statement.col_offset, lines)

    def branch(self, chain: ast.If, test: str, line: str) -> None:
        """Put a branch before an `if`, which becomes its `elif`."""
        self._insert(chain.lineno - 1, chain.col_offset, (test, f"    {line}"))
        row, column = chain.lineno - 1, chain.col_offset
        self.edits.append((row, column, column, "el"))

    def _insert(self, row: int, indent: int, lines: Sequence[str]) -> None:
        self.edits.append((row, -1, -1, "".join(f"{' ' * indent}{line}\n" for line in lines)))

    def text(self) -> str:
        """Return the edited source."""
        rows = [line.encode() for line in self.lines]
        if rows and not rows[-1].endswith(b"\n"):
            rows[-1] += b"\n"
        before: dict[int, list[str]] = {}
        for row, start, end, text in sorted(self.edits, key=lambda edit: (edit[0], edit[1]), reverse=True):
            if start == -1:
                before.setdefault(row, []).insert(0, text)
            else:
                line = rows[row]
                stop = len(line.rstrip(b"\r\n")) if end == -1 else end
                rows[row] = line[:start] + text.encode() + line[stop:]
        rows.append(b"")
        return "".join("".join(before.get(row, [])) + line.decode() for row, line in enumerate(rows))
