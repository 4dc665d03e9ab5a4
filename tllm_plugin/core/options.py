"""Declare options of detectors and methods as data; hosts derive config keys, flags, checks and help from them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from tllm_plugin.core.errors import ConfigError, did_you_mean

#: Returns a description of the accepted values, or None if the value is accepted.
Check = Callable[[Any], str | None]


def number_in(low: float, high: float, *, open_low: bool = False, open_high: bool = False) -> Check:
    """Return a check for numbers in an interval; the message omits an infinite upper end."""

    def check(value: Any) -> str | None:
        if not isinstance(value, (bool, str)) and hasattr(value, "__float__"):
            number = float(value)
            above = number > low if open_low else number >= low
            below = number < high if open_high else number <= high
            if above and below:  # NaN is neither.
                return None
        if math.isinf(high):
            return f"{'more than' if open_low else 'at least'} {low:g}"
        return f"in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}"

    return check


def at_least(low: float) -> Check:
    """Return a check for finite numbers of at least `low`."""
    return number_in(low, math.inf, open_high=True)


def more_than(low: float) -> Check:
    """Return a check for finite numbers above `low`."""
    return number_in(low, math.inf, open_low=True, open_high=True)


def count_in(low: int, high: float = math.inf) -> Check:
    """Return a check for integers in [low, high]; the message omits an infinite upper end."""
    expected = f"at least {low}" if math.isinf(high) else f"in [{low}, {high}]"

    def check(value: Any) -> str | None:
        whole = not isinstance(value, bool) and hasattr(value, "__index__")
        return None if whole and low <= value.__index__() <= high else expected

    return check


def one_of(known: Iterable[str]) -> Check:
    """Return a check for names; `known` is read when a value is checked, so later registrations count."""
    return lambda value: None if value in known else f"one of {', '.join(sorted(known))}"


def rejected(name: str, expected: str, value: Any, shown: str) -> str:
    """Return the error message for a rejected value, with a suggestion if names were expected.

    Args:
        name: Name of the option or its key.
        expected: Description from the check.
        value: The value.
        shown: The value as text, shortened if necessary.
    """
    known = expected.removeprefix("one of ").split(", ") if expected.startswith("one of ") else ()
    return f"Expected `{name}` to be {expected}, but got {shown}{did_you_mean(str(value), known)}"


#: Checks for fractions in [0, 1) (SHARE) and for thresholds in (0, 1) (INSIDE).
SHARE = number_in(0, 1, open_high=True)
INSIDE = number_in(0, 1, open_low=True, open_high=True)


@dataclass(frozen=True)
class Option:
    """One option of a detector, a method or a host.

    Args:
        name: Name of the constructor's argument and of the attribute that holds the value.
        default: Default value; its type is the type of the option.
        check: Check of the value; None if the config's type check is sufficient.
        help: Text for lists of options and flag help; starts in lower case and has no full stop.
        key: Config key below the node of the detector or method; empty derives it as the upper-case name.
        flag: Flag in RepDistiller, without dashes; empty derives it from the names of owner and option, None for none.
    """

    name: str
    default: Any
    check: Check | None
    help: str
    key: str = ""
    flag: str | None = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", self.key or self.name.upper())

    def read(self, value: Any) -> Any:
        """Check a value and return it; numbers are converted to the type of the default.

        Raises:
            ConfigError: The check rejects the value.
        """
        expected = self.check(value) if self.check is not None else None
        if expected is not None:
            raise ConfigError(rejected(self.name, expected, value, repr(value)))
        return type(self.default)(value) if type(self.default) in (int, float) else value


def option(default: Any, check: Check | None, help: str, key: str = "", flag: str | None = "") -> Any:
    """Declare an option in a class body: `eta: float = option(0.05, INSIDE, "how far ...")`; see `Option`."""
    return Option("", default, check, help, key, flag)


class WithOptions:
    """Base of classes that declare options in their body; each option becomes an attribute of the instance."""

    #: Options of the class and its bases, in the order of lists and help texts.
    options: ClassVar[tuple[Option, ...]] = ()

    def __init_subclass__(cls, **how: Any) -> None:
        super().__init_subclass__(**how)
        declared = {name: item for name, item in vars(cls).items() if isinstance(item, Option)}
        named = (replace(item, name=name, key=item.key or name.upper()) for name, item in declared.items())
        cls.options = (*(item for item in cls.options if item.name not in declared), *named)

    def set_options(self, given: Mapping[str, Any]) -> None:
        """Set an attribute for each option to the given value or the default.

        Raises:
            ConfigError: A value is rejected, or a name is not an option.
        """
        unknown = set(given) - {option.name for option in self.options}
        if unknown:
            known = ", ".join(sorted(option.name for option in self.options)) or "none"
            raise ConfigError(
                f"Expected options of {type(self).__name__} to be among {known}, but got {', '.join(sorted(unknown))}"
            )
        for option in self.options:
            setattr(self, option.name, option.read(given.get(option.name, option.default)))
