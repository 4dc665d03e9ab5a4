"""Format numbers and names for sentences."""

from __future__ import annotations

from collections.abc import Sequence


def counted(count: int, one: str, several: str) -> str:
    """Return a number with the singular or plural of a noun.

    >>> counted(1, "class", "classes"), counted(0, "class", "classes")
    ('1 class', '0 classes')
    """
    return f"{count:,} {one if count == 1 else several}"


def listed(names: Sequence[str]) -> str:
    """Join names by commas, or by semicolons if a name contains a comma, as ImageNet's do.

    >>> listed(["tub, vat", "missile"])
    'tub, vat; missile'
    """
    return ("; " if any("," in name for name in names) else ", ").join(names)
