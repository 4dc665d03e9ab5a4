"""Escape arbitrary text for a terminal, Markdown, LaTeX and CSV cells.

Class names come from folders and run names from users, so a name may hold anything that a file system accepts: escape
sequences, characters that change the writing direction, bytes that are not UTF-8, formulas. JSON and HTML need only
`visible` from here, because their writers escape everything else.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Any

# C0 and C1 controls, surrogates (Python's representation of bytes that are not UTF-8), line separators, and characters
# without width that change others: bidirectional overrides and isolates, joiners, tags.
_HIDDEN = {"Cc", "Cs", "Cf", "Zl", "Zp"}
_MARKDOWN = re.compile(r"[\\`*_\[\]<|~&$]")
_LATEX = {
    "\\": r"\textbackslash{}",
    **{sign: f"\\{sign}" for sign in "%&#_{}$"},
    "\u0394": r"$\Delta$",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    '"': "''",
    "[": "{[}",  # After a line's end it would begin an option.
    "]": "{]}",
}
# First characters of formulas in spreadsheets, and the apostrophe that prevents such a reading.
_HALF = re.compile("[\ud800-\udc7f\udd00-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "'", "\uff1d", "\uff0b", "\uff0d", "\uff20")


def visible(text: str, *, keep: str = "") -> str:
    r"""Replace every character that a terminal would interpret instead of display by an escape sequence.

    Args:
        text: Any string; printable characters are unchanged.
        keep: Characters to leave unchanged, for example the line breaks of a message.

    >>> print(visible("caf\udce9 \x1b[31mred\u202e"))
    caf\xe9 \x1b[31mred\u202e
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(sign if sign in keep or unicodedata.category(sign) not in _HIDDEN else _code(sign) for sign in text)


def all_visible(value: Any) -> Any:
    """Apply `visible` to every string in a JSON value except the keys of mappings."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, dict):
        return {key: all_visible(item) for key, item in value.items()}
    return [all_visible(item) for item in value] if isinstance(value, list) else value


def markdown_text(text: str) -> str:
    r"""Escape `text` for Markdown, including table cells.

    >>> print(markdown_text("a|b [x](y)"))
    a\|b \[x\](y)
    """
    return _MARKDOWN.sub(r"\\\g<0>", visible(text))


def latex_text(text: str) -> str:
    r"""Escape `text` for LaTeX.

    >>> print(latex_text("50 % of a_b"))
    50 \% of a\_b
    """
    return "".join(_LATEX.get(sign, sign) for sign in visible(text))


def csv_text(text: str) -> str:
    """Prefix `text` with an apostrophe if a spreadsheet would take the CSV cell for a formula.

    The `csv` module does all other quoting. A reader recovers the text by removing one leading apostrophe.

    >>> csv_text("=1+1"), csv_text("'s"), csv_text("cat")
    ("'=1+1", "''s", 'cat')
    """
    # A surrogate that does not represent a byte cannot be encoded.
    text = _HALF.sub(lambda found: _code(found[0]), text)
    return f"'{text}" if text.startswith(_FORMULA) else text


def _code(sign: str) -> str:
    value = ord(sign)
    if 0xDC80 <= value <= 0xDCFF:  # Python's representation of a byte.
        value -= 0xDC00
    return f"\\x{value:02x}" if value < 0x100 else f"\\u{value:04x}" if value < 0x10000 else f"\\U{value:08x}"
