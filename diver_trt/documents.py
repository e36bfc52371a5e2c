"""JSON documents read from disk: every value is checked where it is taken, and an error names the file and the field."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from diver_trt.errors import DiverError, shown

T = TypeVar("T")

MAX_DOCUMENT_BYTES = 256 * 1024**2
_SHA256 = re.compile("[0-9a-f]{64}")


class Document:
    """One JSON object, with typed access to its fields.

    Attributes:
        where: The file and the path of fields down to here, as errors print it: `bundle.json: networks.encoder`.
        error: The class that is raised for a bad field.
    """

    def __init__(self, value: object, where: str, error: type[DiverError]) -> None:
        if not isinstance(value, dict):
            raise error(f"{where}: found {_name(value)}, expected an object")
        self._fields: dict[str, Any] = value
        self.where = where
        self.error = error

    @classmethod
    def read(cls, path: Path, error: type[DiverError]) -> Document:
        """Read a file.

        Raises:
            error: The file is missing, unreadable, too large, or not a JSON object.
        """
        try:
            if path.stat().st_size > MAX_DOCUMENT_BYTES:
                raise error(
                    f"{path}: {path.stat().st_size:,} bytes is too large for a manifest; is this the right file?"
                )
            value = json.loads(path.read_text(encoding="utf-8"))
        except OSError as cause:
            raise error(f"{path}: {cause.strerror or cause}") from cause
        except (ValueError, RecursionError) as cause:
            raise error(f"{path}: not valid JSON ({cause})") from cause
        return cls(value, str(path), error)

    @property
    def fields(self) -> Mapping[str, Any]:
        """Every field as it is."""
        return self._fields

    def __contains__(self, key: str) -> bool:
        return self._fields.get(key) is not None

    def fail(self, key: str, problem: str) -> DiverError:
        """Return the error that says what is wrong with a field."""
        return self.error(f"{self._path(key)}: {problem}")

    def text(self, key: str, choices: tuple[str, ...] | None = None) -> str:
        """Return a text that can be printed, one of `choices` if given."""
        value = self._take(key, _is_text, "a text on one line")
        if choices is not None and value not in choices:
            raise self.fail(
                key, f"found {shown(repr(value))}, expected one of {', '.join(choices)}"
            )
        return str(value)

    def sha256(self, key: str) -> str:
        """Return a SHA-256 in hex."""
        expected = "a SHA-256, 64 hexadecimal digits in lower case"
        return str(
            self._take(
                key,
                lambda value: isinstance(value, str) and bool(_SHA256.fullmatch(value)),
                expected,
            )
        )

    def integer(self, key: str, low: int = 0, high: int = 2**63 - 1) -> int:
        """Return a whole number from `low` to `high`."""
        expected = (
            f"a whole number, {low} or more"
            if high == 2**63 - 1
            else f"a whole number from {low} to {high:,}"
        )
        return int(
            self._take(key, lambda value: _is_integer(value) and low <= value <= high, expected)
        )

    def number(self, key: str) -> float:
        """Return a finite number."""
        return float(
            self._take(
                key,
                lambda value: _is_number(value) and abs(value) <= sys.float_info.max,
                "a number",
            )
        )

    def flag(self, key: str) -> bool:
        """Return true or false."""
        return bool(self._take(key, lambda value: isinstance(value, bool), "true or false"))

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of texts that can be printed."""
        return tuple(
            self._take(
                key,
                lambda value: isinstance(value, list) and all(map(_is_text, value)),
                "a list of texts on one line each",
            )
        )

    def values(self, key: str, expected: str, accepts: Callable[[Any], bool]) -> tuple[Any, ...]:
        """Return a list in which `accepts` holds for every value; `expected` says so in words."""
        return tuple(
            self._take(
                key,
                lambda value: isinstance(value, list) and all(accepts(v) for v in value),
                expected,
            )
        )

    def mapping(self, key: str) -> dict[str, Any]:
        """Return an object as it is."""
        return dict(self._take(key, lambda value: isinstance(value, dict), "an object"))

    def document(self, key: str) -> Document:
        """Return an object for typed access."""
        return Document(
            self._take(key, lambda value: isinstance(value, dict), "an object"),
            self._path(key),
            self.error,
        )

    def documents(self, key: str) -> Iterator[Document]:
        """Return a list of objects for typed access."""
        values = self._take(key, lambda value: isinstance(value, list), "a list")
        return (
            Document(value, f"{self._path(key)}[{i}]", self.error) for i, value in enumerate(values)
        )

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """Return `read(key)`, or None where the field is missing or null: `document.optional("revision", document.text)`."""
        return read(key) if key in self else None

    def _take(self, key: str, accepts: Callable[[Any], bool], expected: str) -> Any:
        if key not in self._fields:
            raise self.fail(key, f"missing, expected {expected}")
        value = self._fields[key]
        if not accepts(value):
            raise self.fail(key, f"found {_name(value)}, expected {expected}")
        return value

    def _path(self, key: str) -> str:
        return f"{self.where}: {key}" if self.where.endswith(".json") else f"{self.where}.{key}"


def _is_text(value: object) -> bool:
    return isinstance(value, str) and value.isprintable()


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(value: object) -> str:
    try:
        text = json.dumps(value)
    except RecursionError:  # writing nested values takes more of the stack than reading them did
        return "a value that is nested too deeply"
    return text if len(text) <= 60 else f"{text[:57]}..."
