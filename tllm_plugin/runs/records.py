"""Read and write the JSON records of a run, validated by pydantic.

A record is a frozen pydantic dataclass. Its fields have the types below, which accept JSON values and convert only
lists to tuples and integers to floats. Unknown keys, which later versions may write, are ignored.
"""

from __future__ import annotations

import os
import reprlib
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

from pydantic import FailFast, Field, InstanceOf, Strict, StrictBool, TypeAdapter, ValidationError

from tllm_plugin.core.errors import FileFormatError
from tllm_plugin.runs.atomic import write_json
from tllm_plugin.runs.reading import read_json
from tllm_plugin.runs.stamps import stamped

T = TypeVar("T")
R = TypeVar("R", bound="Record")

Flag = StrictBool
#: A string; names of files and folders may hold lone surrogates, which pydantic's own string type refuses.
Text = InstanceOf[str]
Mapping = Annotated[dict[str, Any], InstanceOf()]
Integer = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=0)]
Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Amount = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=0)]
Fraction = Annotated[float, Strict(), Field(allow_inf_nan=False, ge=0, le=1)]
#: A JSON list. Only the first wrong item is reported, so that a file of millions of them costs no memory.
List = Annotated[tuple[T, ...], FailFast()]

# Python terms in pydantic's messages, and the JSON terms that replace them.
_EXPECTED = {
    "Field required": "present",
    "a valid integer": "an integer",
    "a valid boolean": "true or false",
    "a valid number": "a finite number",
    "a valid tuple": "a list",
    "an instance of dict": "an object",
    "an instance of str": "a string",
}


class Inconsistent(ValueError):
    """Raised by a record's validator if fields contradict each other.

    Args:
        field: Path of the reported field within the record, such as `classes[2].index`.
        expected: Description of the expected value, with an article.
        got: Actual value.
    """

    def __init__(self, field: str, expected: str, got: object) -> None:
        super().__init__(field, expected, got)
        self.field = field
        self.expected = expected
        self.got = got


class Record:
    """Base of records with a file of their own."""

    KIND: ClassVar[str]
    VERSION: ClassVar[int] = 1

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write the record atomically; see `write_json` for the errors that are raised."""
        write_json(path, stamped(self.KIND, self.VERSION, TypeAdapter(type(self)).dump_python(self)))

    @classmethod
    def read(cls: type[R], path: str | os.PathLike[str]) -> R:
        """Read a record.

        Raises:
            FileFormatError: The file is missing, damaged, of another kind or version, or has an invalid field.
        """
        content = read_json(path, cls.KIND, cls.VERSION)
        return validated(cls, content, f"in {Path(path)}")


def validated(kind: type[T], content: object, where: str) -> T:
    """Validate JSON values and return them as a record.

    Args:
        kind: Pydantic dataclass of the record.
        content: Parsed JSON.
        where: End of the first half of the error message: "in FILE".

    Raises:
        FileFormatError: A field is missing, of another type, out of range, or contradicts another one. The message
            names the first such field.
    """
    try:
        return TypeAdapter(kind).validate_python(content)
    except ValidationError as error:
        raise FileFormatError(f"{_first_problem(error)} {where}; run again what wrote it") from None


def _first_problem(error: ValidationError) -> str:
    """Return `Expected FIELD to be WHAT, but got VALUE` for the first of pydantic's errors."""
    first = error.errors(include_url=False)[0]
    field = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in first["loc"])
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, Inconsistent):
        field, expected, got = f"{field}.{cause.field}", cause.expected, str(cause.got)
    else:
        said = first["msg"].removeprefix("Input should be ")
        expected = "an object" if first["type"] == "dataclass_type" else _EXPECTED.get(said, said)
        got = "nothing" if first["type"] == "missing" else reprlib.repr(first["input"])
    field = field.removeprefix(".")
    return f"Expected {f'`{field}`' if field else 'the content'} to be {expected}, but got {got}"
