"""One frozen dataclass for each JSON document: it is written, read and validated from there.

The type of a field states what a document may hold there; `Annotated` with a `Check` narrows it:

    str                        a text on one line, of limited length
    int, float, bool           a whole number of 64 bits, a finite number, true or false
    Literal["a", "b"]          one of these texts
    T | None, T | U            also null, either of them
    tuple[T, ...], tuple[T, T] a list, of any length or of this one
    Mapping[str, T]            an object with any keys
    Mapping[Literal[...], T]   an object with these keys, in this order
    a dataclass                an object; its method `check`, if it has one, compares fields
    Any                        anything

A field without a default must be there. Other keys are ignored, so that a later version may add
some.
"""

# Written by hand, because msgspec 0.22 (tried) keeps the last of two equal keys, has no limit on
# depth or characters, does not quote the value that it refuses and leaves keys of a mapping out of
# the path ("$.networks[...].name"): all of this would have been added around it.

from __future__ import annotations

import re
import sys
import types
import unicodedata
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from diver_trt.errors import shown
from diver_trt.strict_json import quoted

GIVEN: Mapping[str, Any] = {"given": True}
"""Metadata of a field that is not in the document: the caller of `load` gives it.

In a struct that is a value of a mapping, it is the key.
"""
OMITTED: Mapping[str, Any] = {"omitted": True}
"""Metadata of a field that is left out of the document where it has its default."""


class Invalid(ValueError):  # noqa: N818 -- never leaves this layer
    """A value that its field cannot hold; `check` of a struct raises it, and `load` adds the path.

    Args:
        problem: What was found and what was expected.
        path: Fields and positions down to the value.
    """

    def __init__(self, problem: str, *path: str | int) -> None:
        super().__init__(problem)
        self.problem, self.path = problem, list(path)

    def __str__(self) -> str:
        steps = (f"[{step}]" if isinstance(step, int) else f".{shown(step)}" for step in self.path)
        path = "".join(steps).removeprefix(".")
        return f"{path}: {self.problem}" if path else self.problem


@dataclass(frozen=True, slots=True)
class Check:
    """What a value must be beyond its type; `expected` puts that into words."""

    holds: Callable[[Any], bool]
    expected: str


def whole(low: int, high: int | None = None) -> Check:
    """Return the check for a whole number from `low` to `high`."""
    if high is None:
        return Check(lambda value: low <= value < 2**63, f"a whole number, {low} or more")
    return Check(lambda value: low <= value <= high, f"a whole number from {low} to {high:,}")


def one_of(choices: tuple[str, ...]) -> Check:
    """Return the check for one of several texts."""
    return Check(choices.__contains__, f"one of {', '.join(choices)}")


Size = Annotated[int, whole(0)]
Count = Annotated[int, whole(1)]
Sha256 = Annotated[
    str,
    Check(
        lambda value: re.fullmatch("[0-9a-f]{64}", value) is not None,
        "a SHA-256, 64 hexadecimal digits in lower case",
    ),
]


@dataclass(frozen=True, slots=True, eq=False)
class Tagged:
    """Marks a field that holds one of several structs, named by its field `kind`."""

    structs: Mapping[str, type]


def parse(hint: Any, value: Any, limit: int, path: Sequence[str] = ()) -> Any:
    """Return what a JSON value holds: a struct, or one field whatever the others hold.

    Args:
        hint: A dataclass, or the type of the field.
        value: The value.
        limit: Characters of one text in it.
        path: The keys down to the field.

    Raises:
        Invalid: If something is missing, or does not match its type.
    """
    if not path:
        return _kind(hint).parse(value, limit)
    name, *rest = path
    inner = _PLAIN[dict].parse(value, limit)
    if name not in inner:
        raise Invalid(f"missing, expected {_kind(dict if rest else hint).expected(limit)}", name)
    try:
        return parse(hint, inner[name], limit, rest)
    except Invalid as bad:
        bad.path.insert(0, name)
        raise


def dump(value: Any) -> Any:
    """Return the JSON value of a struct, or of a field of one."""
    # Not `dataclasses.asdict`, which has no way to leave fields out.
    if is_dataclass(value):
        return {
            field.name: dump(inner)
            for field in fields(value)
            if "given" not in field.metadata
            and ((inner := getattr(value, field.name)) != field.default or not _is_omitted(field))
        }
    if isinstance(value, Mapping):
        return {key: dump(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [dump(inner) for inner in value]
    return value


def _is_omitted(field: Field[Any]) -> bool:
    return "omitted" in field.metadata


@dataclass(frozen=True, slots=True)
class _Kind:
    """What a type accepts: in words, given the limits, and as a function that raises `Invalid`."""

    expected: Callable[[int], str]
    parse: Callable[[Any, int], Any]


@cache
def _kind(hint: Any) -> _Kind:
    """Return what a type accepts."""
    origin, args = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if is_dataclass(hint):
        return _Kind(_PLAIN[dict].expected, _struct_parser(hint))
    if origin is Annotated:
        (mark,) = hint.__metadata__
        return _tagged(mark) if isinstance(mark, Tagged) else _checked(_kind(args[0]), mark)
    if origin is Literal:
        texts = _simple(lambda value, _: isinstance(value, str), "a text")
        return _checked(texts, one_of(args))
    if origin in (Union, types.UnionType):
        return _union([_kind(arg) for arg in args])
    if origin is tuple:
        return _list(_kind(args[0]), None if args[-1] is ... else len(args))
    assert origin in (Mapping, dict), hint
    return _mapping(*args)


def _simple(
    accepts: Callable[[Any, int], bool],
    expected: str,
    convert: Callable[[Any], Any] = lambda value: value,
) -> _Kind:
    def words(limit: int) -> str:
        return expected.format(text=limit)

    def parse(value: Any, limit: int) -> Any:
        if not accepts(value, limit):
            raise Invalid(f"found {quoted(value)}, expected {words(limit)}")
        return convert(value)

    return _Kind(words, parse)


def _is_text(value: object, limit: int) -> bool:
    return (
        isinstance(value, str)
        and len(value) <= limit
        # A document of a newer Python may have characters that this one's Unicode lacks ("Cn").
        and (value.isprintable() or all(map(_is_printable_or_new, value)))
    )


def _is_printable_or_new(character: str) -> bool:
    return character.isprintable() or unicodedata.category(character) == "Cn"


_PLAIN: dict[Any, _Kind] = {
    Any: _Kind(lambda _: "a value", lambda value, _: value),
    type(None): _simple(lambda value, _: value is None, "null"),
    str: _simple(_is_text, "a text on one line, of at most {text:,} characters"),
    dict: _simple(lambda value, _: isinstance(value, dict), "an object"),
    bool: _simple(lambda value, _: isinstance(value, bool), "true or false"),
    # type() instead of isinstance(), for which true is a whole number
    int: _simple(
        lambda value, _: type(value) is int and -(2**63) <= value < 2**63, "a whole number"
    ),
    float: _simple(
        # Compared, not converted: `float` raises OverflowError for a whole number of 400 digits.
        lambda value, _: type(value) in (int, float) and abs(value) <= sys.float_info.max,
        "a number",
        float,
    ),
}


def _union(kinds: list[_Kind]) -> _Kind:
    def words(limit: int) -> str:
        return " or ".join(kind.expected(limit) for kind in kinds)

    def parse(value: Any, limit: int) -> Any:
        # Apart, because an exception is slow, and a manifest may have a null for every image.
        if value is None and _PLAIN[type(None)] in kinds:
            return None
        for kind in kinds:
            try:
                return kind.parse(value, limit)
            except Invalid as bad:
                if bad.path:  # it is of this kind, and something in it is wrong
                    raise
        raise Invalid(f"found {quoted(value)}, expected {words(limit)}")

    return _Kind(words, parse)


def _checked(base: _Kind, check: Check) -> _Kind:
    def parse(value: Any, limit: int) -> Any:
        try:
            parsed = base.parse(value, limit)
        except Invalid as bad:
            if bad.path:
                raise
        else:
            if check.holds(parsed):
                return parsed
        raise Invalid(f"found {quoted(value)}, expected {check.expected}")

    return _Kind(lambda _: check.expected, parse)


def _list(item: _Kind, length: int | None) -> _Kind:
    expected = "a list" if length is None else f"a list of {length}"

    def words(limit: int) -> str:
        return f"{expected}, each {item.expected(limit)}"

    def parse(value: Any, limit: int) -> tuple[Any, ...]:
        if not isinstance(value, list) or length not in (None, len(value)):
            raise Invalid(f"found {quoted(value)}, expected {words(limit)}")
        return tuple(_parse_inside(item, inner, limit, i) for i, inner in enumerate(value))

    return _Kind(words, parse)


def _mapping(key_hint: Any, item_hint: Any) -> _Kind:
    item, keys = _kind(item_hint), get_args(key_hint)
    # A struct that is a value of a mapping receives its key in this field (`GIVEN`).
    named = (
        [f.name for f in fields(item_hint) if "given" in f.metadata]
        if is_dataclass(item_hint)
        else []
    )

    def parse(value: Any, limit: int) -> dict[str, Any]:
        _PLAIN[dict].parse(value, limit)
        for key in keys:
            if key not in value:
                raise Invalid(f"missing, expected {item.expected(limit)}", key)
        parsed = {}
        # Declared keys in the order in which they are declared, whatever order the document has.
        for key in keys or value:
            if not _is_text(key, limit):
                text = _PLAIN[str].expected(limit)
                raise Invalid(f"found the key {quoted(key)}, expected {text}")
            inner = value[key]
            if named and isinstance(inner, dict):
                # The key comes last, so that a field of this name in the document cannot contradict
                # it.
                inner = {**inner, named[0]: key}
            parsed[key] = _parse_inside(item, inner, limit, key)
        return parsed

    return _Kind(_PLAIN[dict].expected, parse)


def _tagged(mark: Tagged) -> _Kind:
    def parse(value: Any, limit: int) -> Any:
        _PLAIN[dict].parse(value, limit)
        # looked up now, since a registry may grow
        kind = _checked(_PLAIN[str], one_of(tuple(mark.structs)))
        name = _parse_inside(kind, value.get("kind"), limit, "kind")
        return _kind(mark.structs[name]).parse(value, limit)

    return _Kind(_PLAIN[dict].expected, parse)


def _struct_parser(struct: Any) -> Callable[[Any, int], Any]:
    # Annotations are texts here, which this evaluates; by default it strips `Annotated`:
    # https://docs.python.org/3/library/typing.html#typing.get_type_hints
    hints = get_type_hints(struct, include_extras=True)
    plan = [
        (field.name, field.default is not MISSING, _kind(hints[field.name]))
        if "given" not in field.metadata
        else (field.name, False, _PLAIN[Any])
        for field in fields(struct)
    ]
    check = getattr(struct, "check", None)

    def parse(value: Any, limit: int) -> Any:
        _PLAIN[dict].parse(value, limit)
        found, name = {}, ""
        try:
            for name, may_be_missing, kind in plan:
                if name in value:
                    found[name] = kind.parse(value[name], limit)
                elif not may_be_missing:
                    raise Invalid(f"missing, expected {kind.expected(limit)}")
        except Invalid as bad:
            bad.path.insert(0, name)
            raise
        loaded = struct(**found)
        if check:
            check(loaded)
        return loaded

    return parse


def _parse_inside(kind: _Kind, value: Any, limit: int, step: str | int) -> Any:
    try:
        return kind.parse(value, limit)
    except Invalid as bad:
        bad.path.insert(0, step)
        raise
