"""Filled tables as Markdown and LaTeX."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tllm_plugin.analysis.comparison import Spread
from tllm_plugin.analysis.records import Markup, as_markdown
from tllm_plugin.analysis.tables import FilledCell, FilledTable
from tllm_plugin.core.escaping import latex_text


def markdown(tables: Sequence[FilledTable]) -> str:
    """Return the tables as Markdown: the paper's number, then the result of the user's runs in bold."""
    yours = sum(filled.filled for filled in tables)
    parts = [
        f"Plain numbers are the paper's. **Bold numbers are yours** ({yours} cells): mean +- standard deviation over "
        "(n) seeds.\n"
        if yours
        else "All numbers below are the paper's; no cell is filled by a run of yours.\n"
    ]
    for filled in tables:
        heading = ["", *filled.table.columns]
        rows = [
            [label, *(_markdown_cell(cell, filled.table.decimals) for cell in cells)] for label, cells in filled.rows
        ]
        source = f"{filled.filled} cells are yours" if filled.filled else "the paper's numbers only"
        title = f"### Table {filled.table.number}: {filled.table.title} ({source})"
        parts.append(f"{title}\n\n{as_markdown(heading, rows)}\n")
    return "\n".join(parts)


def latex(tables: Sequence[FilledTable]) -> str:
    """Return the tables as LaTeX, which needs the package `booktabs`; the user's results are bold."""
    parts = []
    for filled in tables:
        title = latex_text(filled.table.title)
        source = r"plain: the paper; \textbf{bold}: own runs" if filled.filled else "the paper's numbers only"
        lines = [
            r"\begin{table}",
            rf"\caption{{Table {filled.table.number}: {title} ({source}).}}",
            rf"\begin{{tabular}}{{l{'r' * len(filled.table.columns)}}}",
            r"\toprule",
            " & ".join(["", *map(latex_text, filled.table.columns)]) + r" \\",
            r"\midrule",
            *(
                " & ".join([latex_text(label), *(_latex_cell(cell, filled.table.decimals) for cell in cells)]) + r" \\"
                for label, cells in filled.rows
            ),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def _markdown_cell(cell: FilledCell, decimals: int) -> Markup:
    printed = "" if cell.published is None else f"{cell.published:.{decimals}f}"
    return Markup(printed if cell.ours is None else f"{printed} / **{_own(cell.ours, '+-')}**")


def _latex_cell(cell: FilledCell, decimals: int) -> str:
    printed = "" if cell.published is None else f"{cell.published:.{decimals}f}"
    if cell.ours is None:
        return printed
    own = _own(cell.ours, r"$\pm$")
    return rf"{printed} / \textbf{{{own}}}"


def _own(spread: Spread, plus_minus: str) -> str:
    deviation = "" if math.isnan(spread.std) else f" {plus_minus} {spread.std:.2f}"
    return f"{spread.mean:.2f}{deviation} ({spread.n})"
