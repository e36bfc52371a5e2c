"""JSON documents read from disk; every access checks the value and names the faulty field.

JSON is read strictly, because another program may understand the rest differently: no NaN or
Infinity, no number that overflows, no key twice in one object. A byte order mark is skipped, as RFC
8259 allows.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from diver_trt.contained_file import open_contained
from diver_trt.errors import DiverError, printable, shown

T = TypeVar("T")

MAX_DEPTH = 32
"""Levels of lists and objects within each other; the deepest document of ours has 6."""
MAX_DIGITS = 1000
"""Characters of a number."""
_SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Limits:
    """What a kind of document may need.

    Attributes:
        size_bytes: Its size on disk.
        text: Characters of one text in it.
    """

    size_bytes: int
    text: int

    @property
    def separators(self) -> int:
        """Limit on commas and opening brackets, and so on the number of values.

        A value of two bytes on disk takes 64 bytes in memory.
        """
        return self.size_bytes // 32


MANIFEST_LIMITS = Limits(512 * 1024**2, 8192)
"""Of a recovered dataset's manifest.

One of ImageNet-1k's 1.28 million images takes 300 bytes and 10 separators per image, 384 MB; a text
may be a path, of at most 4,096 bytes on Linux, with a sentence about it.
"""


class Document:
    """One JSON object, with typed access to its fields.

    Attributes:
        where: The file and the path of fields down to here, as errors print it: `bundle.json:
            networks.encoder`.
        error: The class that is raised for a bad field.
        file_sha256: Hash of the file that was read, in hex, or "" for an object from elsewhere.
    """

    def __init__(
        self,
        value: object,
        where: str,
        error: type[DiverError],
        limits: Limits = MANIFEST_LIMITS,
        file_sha256: str = "",
    ) -> None:
        if not isinstance(value, dict):
            raise error(f"{where}: found {_name(value)}, expected an object")
        self._fields: dict[str, Any] = value
        self._limits = limits
        self.where = where
        self.error = error
        self.file_sha256 = file_sha256

    @classmethod
    def read(
        cls, path: Path, error: type[DiverError], limits: Limits = MANIFEST_LIMITS
    ) -> Document:
        """Read a file, which must be a regular file in its folder.

        Raises:
            error: If the file is missing, unreadable, a link out of its folder, larger than the
                limits, or not a JSON object.
        """
        where = printable(str(path))
        try:
            with open_contained(path, path.parent, error) as file:
                data = file.read(limits.size_bytes + 1)
        except OSError as cause:
            raise error(f"{where}: {cause.strerror or cause}") from cause
        if len(data) > limits.size_bytes:
            raise error(
                f"{where}: more than {limits.size_bytes:,} bytes, expected no more in a file of "
                "this kind. Is it the right one?"
            )
        separators = sum(data.count(mark) for mark in (b",", b"[", b"{"))
        if separators > limits.separators:
            raise error(
                f"{where}: about {separators:,} values, expected at most {limits.separators:,}. "
                "Is it the right file?"
            )
        digest, text = hashlib.sha256(data).hexdigest(), _decoded(data, where, error)
        del data  # a large manifest need not be in memory twice while it is parsed
        return cls(parse_json(text, where, error), where, error, limits, digest)

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
        if choices is None:
            return str(self._take(key, self._is_text, self._expected_text("a text")))
        value = self._take(key, lambda value: isinstance(value, str), "a text")
        if value not in choices:
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
                lambda value: isinstance(value, list) and all(map(self._is_text, value)),
                self._expected_text("a list of texts"),
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

    def text_mapping(self, key: str) -> dict[str, str]:
        """Return an object whose keys and values are texts that can be printed."""
        return dict(
            self._take(
                key,
                lambda value: (
                    isinstance(value, dict)
                    and all(self._is_text(text) for pair in value.items() for text in pair)
                ),
                self._expected_text("an object of texts"),
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
            self._limits,
        )

    def documents(self, key: str) -> Iterator[Document]:
        """Return a list of objects for typed access."""
        values = self._take(key, lambda value: isinstance(value, list), "a list")
        return (
            Document(value, f"{self._path(key)}[{i}]", self.error, self._limits)
            for i, value in enumerate(values)
        )

    def optional(self, key: str, read: Callable[[str], T]) -> T | None:
        """Return `read(key)`, or None if the field is missing or null.

        For example, `document.optional("revision", document.text)`.
        """
        return read(key) if key in self else None

    def _is_text(self, value: object) -> bool:
        return isinstance(value, str) and len(value) <= self._limits.text and value.isprintable()

    def _expected_text(self, what: str) -> str:
        return f"{what} on one line, of at most {self._limits.text:,} characters"

    def _take(self, key: str, accepts: Callable[[Any], bool], expected: str) -> Any:
        if key not in self._fields:
            raise self.fail(key, f"missing, expected {expected}")
        value = self._fields[key]
        if not accepts(value):
            raise self.fail(key, f"found {_name(value)}, expected {expected}")
        return value

    def _path(self, key: str) -> str:
        return f"{self.where}: {key}" if self.where.endswith(".json") else f"{self.where}.{key}"


def _decoded(data: bytes, where: str, error: type[DiverError]) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as cause:
        raise error(f"{where}: not valid JSON ({cause})") from cause


def parse_json(text: str, where: str, error: type[DiverError]) -> Any:
    """Return what a JSON text holds.

    Args:
        text: The text.
        where: What errors call it.
        error: The class that is raised.

    Raises:
        error: If it is not JSON, or not strict JSON, or nested more than `MAX_DEPTH` deep.
    """
    try:
        value = json.loads(
            text,
            object_pairs_hook=_object,
            parse_constant=_no_number,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError:
        raise error(
            f"{where}: values are nested too deeply, expected {MAX_DEPTH} levels at most"
        ) from None
    except ValueError as cause:
        raise error(f"{where}: not valid JSON ({cause})") from cause
    if _is_deeper(value, MAX_DEPTH):
        raise error(f"{where}: values are nested too deeply, expected {MAX_DEPTH} levels at most")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(repr(twice))} occurs twice in one object")
    return fields


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    if math.isinf(number := float(_short(text))):
        raise ValueError(f"the number {shown(text)} is too large")
    return number


def _integer(text: str) -> int:
    return int(_short(text))


def _short(number: str) -> str:
    if len(number) > MAX_DIGITS:
        raise ValueError(f"a number has {len(number):,} digits, expected at most {MAX_DIGITS:,}")
    return number


def _is_deeper(value: object, levels: int) -> bool:
    """Return whether lists and objects are nested deeper than a limit, without recursion."""
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(levels):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, (dict, list))
        ]
    return bool(level)


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _name(value: object) -> str:
    """Return the beginning of a value in JSON, without writing the rest of it."""
    text = ""
    try:
        for part in json.JSONEncoder().iterencode(value[:61] if isinstance(value, str) else value):
            text += part
            if len(text) > 60:
                return f"{text[:57]}..."
    except RecursionError:
        return "a value that is nested too deeply"
    return text
