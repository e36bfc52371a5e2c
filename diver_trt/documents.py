"""JSON documents on disk, read within limits and made into structs (`diver_trt.structs`)."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from diver_trt.contained_file import open_contained
from diver_trt.errors import DiverError, printable
from diver_trt.strict_json import parse_json, quoted
from diver_trt.structs import Count, Invalid, parse

T = TypeVar("T")


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
        """Limit on commas and opening brackets, and so on the number of values."""
        # A value of two bytes on disk takes 64 bytes in memory.
        return self.size_bytes // 32


MANIFEST_LIMITS = Limits(512 * 1024**2, 8192)
"""Of a recovered dataset's manifest.

One of ImageNet-1k's 1.28 million images takes 300 bytes and 10 separators per image, 384 MB; a text
may be a path, of at most 4,096 bytes on Linux, with a sentence about it.
"""


@dataclass(frozen=True, slots=True)
class Document:
    """One JSON object as it was read, which `load` makes a struct.

    Attributes:
        fields: The object, a dict with texts as keys.
        where: The file, as errors print it.
        error: The class that is raised for a bad field.
        limits: What a document of this kind may need.
        sha256: Hash of the file, in hex, or "" for an object from elsewhere.
    """

    fields: Any
    where: str
    error: type[DiverError]
    limits: Limits = MANIFEST_LIMITS
    sha256: str = ""

    def __post_init__(self) -> None:
        if not isinstance(self.fields, dict):
            raise self.error(f"{self.where}: found {quoted(self.fields)}, expected an object")

    @classmethod
    def read(
        cls,
        path: Path,
        error: type[DiverError],
        limits: Limits = MANIFEST_LIMITS,
        *,
        where: str | None = None,
    ) -> Document:
        """Read a file, which must be a regular file in its folder.

        Args:
            path: The file.
            error: The class that is raised.
            limits: What a document of this kind may need.
            where: The file, as errors print it; None is its path.

        Raises:
            error: If the file is missing, unreadable, a link out of its folder, larger than the
                limits, or not a JSON object.
        """
        where = where or printable(str(path))
        try:
            with open_contained(path, path.parent, error) as file:
                # Not `read(limit)`, which allocates the limit before it reads a byte.
                size = os.fstat(file.fileno()).st_size
                data = file.read(min(size, limits.size_bytes) + 1)
        except OSError as cause:
            raise error(f"{where}: {cause.strerror or cause}") from cause
        # One byte more than the limit was requested, which shows that the file is longer.
        if len(data) > limits.size_bytes:
            raise error(
                f"{where}: more than {limits.size_bytes:,} bytes, expected no more in a file of "
                "this kind. Is it the right one?"
            )
        # Counted in the bytes: parsing would already have put the values into memory.
        separators = sum(data.count(mark) for mark in (b",", b"[", b"{"))
        if separators > limits.separators:
            raise error(
                f"{where}: about {separators:,} values, expected at most {limits.separators:,}. "
                "Is it the right file?"
            )
        digest = hashlib.sha256(data).hexdigest()
        try:
            # A reader may ignore a byte order mark, as "-sig" does:
            # https://www.rfc-editor.org/rfc/rfc8259#section-8.1
            text = data.decode("utf-8-sig")
        except UnicodeDecodeError as cause:
            raise error(f"{where}: not valid JSON ({cause})") from cause
        del data  # a manifest of 384 MB must not be in memory twice while it is parsed
        return cls(parse_json(text, where, error), where, error, limits, digest)

    def load(self, struct: type[T], **given: Any) -> T:
        """Return the struct that this object holds.

        Args:
            struct: A dataclass.
            given: Its fields that are not in the document.

        Raises:
            error: If a field is missing, or does not match its type.
        """
        loaded: T = self._parse(struct, {**self.fields, **given})
        return loaded

    def take(self, hint: Any, *path: str) -> Any:
        """Return one field, whatever the rest of the document holds.

        Args:
            hint: Its type, as a struct would declare it.
            path: The keys down to it.

        Raises:
            error: If it is missing, or does not match its type.
        """
        return self._parse(hint, self.fields, *path)

    def require_schema(self, schema: int, renew: str) -> None:
        """Refuse a document of another version.

        Args:
            schema: The version that is read.
            renew: What to do about an older one.

        Raises:
            error: If the document has another one, or none.
        """
        found = self.take(Count, "schema")
        if found != schema:
            remedy = "update diver-trt" if found > schema else renew
            raise self.error(
                f"{self.where}: schema {found}, but this diver-trt reads schema {schema}; {remedy}"
            )

    def _parse(self, hint: Any, value: Any, *path: str) -> Any:
        try:
            return parse(hint, value, self.limits.text, path)
        except Invalid as bad:
            raise self.error(f"{self.where}: {bad}") from None
