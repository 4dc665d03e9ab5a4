"""Typed fields of a JSON object: a field that is missing or of the wrong type is an error that names it."""

from __future__ import annotations

import reprlib
import sys
from collections.abc import Callable
from typing import Any, TypeGuard, TypeVar

from tllm_plugin.core.errors import FileFormatError

T = TypeVar("T")
Parser = Callable[[object], T]


class FieldError(FileFormatError):
    """A field is not what it should be.

    Args:
        expected: What it should be, with its article.
        got: What it is.
        field: Where it is, from the outermost object inwards; empty for the object itself.
    """

    def __init__(self, expected: str, got: str, field: str = "") -> None:
        super().__init__(f"Expected {f'`{field}`' if field else 'the content'} to be {expected}, but got {got}")
        self.expected = expected
        self.got = got
        self.field = field

    def inside(self, parent: str) -> FieldError:
        """Return the same error as seen from the object that holds this one under `parent`."""
        joint = "." if self.field and not self.field.startswith("[") else ""
        return FieldError(self.expected, self.got, f"{parent}{joint}{self.field}")


def field(obj: object, name: str, parse: Parser[T]) -> T:
    """Return `obj[name]` as `parse` understands it.

    >>> field({"epochs": 240}, "epochs", count)
    240
    >>> field({"epochs": "240"}, "epochs", count)
    Traceback (most recent call last):
    tllm_plugin.runs.fields.FieldError: Expected `epochs` to be an integer of at least 0, but got '240'

    Raises:
        FieldError: `obj` is not an object, has no such field, or `parse` refused its value.
    """
    content = mapping(obj)
    if name not in content:
        raise FieldError("present", "nothing", name)
    try:
        return parse(content[name])
    except FieldError as error:
        raise error.inside(name) from None


def mapping(value: object) -> dict[str, Any]:
    """Accept a JSON object."""
    return _accept(value, isinstance(value, dict), "an object")


def flag(value: object) -> bool:
    """Accept true and false."""
    return _accept(value, isinstance(value, bool), "true or false")


def text(value: object) -> str:
    """Accept a string."""
    return _accept(value, isinstance(value, str), "a string")


def integer(value: object) -> int:
    """Accept an integer."""
    return _accept(value, _is_number(value) and isinstance(value, int), "an integer")


def count(value: object) -> int:
    """Accept an integer of at least 0."""
    return _accept(value, _is_number(value) and isinstance(value, int) and value >= 0, "an integer of at least 0")


def number(value: object) -> float:
    """Accept a finite number."""
    # Compared rather than converted: JSON allows integers that no float can hold.
    accepted = _is_number(value) and -sys.float_info.max <= value <= sys.float_info.max
    return float(_accept(value, accepted, "a finite number"))


def amount(value: object) -> float:
    """Accept a finite number of at least 0."""
    accepted = _is_number(value) and 0 <= value <= sys.float_info.max
    return float(_accept(value, accepted, "a finite number of at least 0"))


def share(value: object) -> float:
    """Accept a number in [0, 1]."""
    return float(_accept(value, _is_number(value) and 0 <= value <= 1, "a number in [0, 1]"))


def optional(parse: Parser[T]) -> Parser[T | None]:
    """Accept null as well."""

    def parse_optional(value: object) -> T | None:
        try:
            return None if value is None else parse(value)
        except FieldError as error:
            raise FieldError(f"{error.expected} or null", error.got, error.field) from None

    return parse_optional


def list_of(parse: Parser[T]) -> Parser[tuple[T, ...]]:
    """Accept a list whose items `parse` accepts."""

    def parse_list(value: object) -> tuple[T, ...]:
        items = []
        for position, item in enumerate(_accept(value, isinstance(value, list), "a list")):
            try:
                items.append(parse(item))
            except FieldError as error:
                raise error.inside(f"[{position}]") from None
        return tuple(items)

    return parse_list


def _is_number(value: object) -> TypeGuard[int | float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _accept(value: Any, accepted: bool, expected: str) -> Any:
    if not accepted:
        raise FieldError(expected, reprlib.repr(value))
    return value
