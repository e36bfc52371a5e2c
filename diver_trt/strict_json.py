"""Parsing JSON strictly: two programs may read anything else differently.

NaN, Infinity, numbers that overflow and a key that occurs twice in one object are refused.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

from diver_trt.errors import DiverError, printable, shown

MAX_DEPTH = 32
"""Levels of lists and objects within each other; the deepest document of ours has 6."""
MAX_DIGITS = 1000
"""Characters of a number."""
_QUOTED = 60
"""Characters of a value that a message quotes."""


def parse_json(text: str, where: str, error: type[DiverError]) -> Any:
    """Return the value of a JSON text.

    Args:
        text: The text.
        where: The file, as errors print it.
        error: The class that is raised.

    Raises:
        error: If it is not JSON, or not strict JSON, or nested more than `MAX_DEPTH` deep.
    """
    # Made before parsing: in the handler, too little of the stack may be left to make it.
    too_deep = error(f"{where}: values are nested too deeply, expected {MAX_DEPTH} levels at most")
    try:
        value = json.loads(
            text,
            # Without these hooks, `json` keeps the last of two equal keys and accepts NaN and
            # 1e999:
            # https://docs.python.org/3/library/json.html#standard-compliance-and-interoperability
            object_pairs_hook=_object,
            parse_constant=_not_a_number,
            parse_float=_finite,
            parse_int=_integer,
        )
    except RecursionError:
        raise too_deep from None
    except ValueError as cause:
        raise error(f"{where}: not valid JSON ({cause})") from cause
    # The parser stops only where the stack ends, and later code recurses into the value.
    if _is_deeper(value, MAX_DEPTH):
        raise too_deep
    return value


def quoted(value: object) -> str:
    """Return the first `_QUOTED` characters of a value in JSON, as errors print it."""
    text = ""
    try:
        # Encoding stops with the quotation: a hostile value may take megabytes.
        for part in json.JSONEncoder().iterencode(
            # The encoder yields a text in one part, so a long one is cut before.
            value[: _QUOTED + 1] if isinstance(value, str) else value
        ):
            text += part
            if len(text) > _QUOTED:
                return printable(f"{text[: _QUOTED - 3]}...")
    except RecursionError:
        return "a value that is nested too deeply"
    return printable(text)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # A dictionary holds one of two equal keys, so its length shows a repeated one.
    fields = dict(pairs)
    if len(fields) < len(pairs):
        twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
        raise ValueError(f"the key {shown(repr(twice))} occurs twice in one object")
    return fields


def _not_a_number(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def _finite(text: str) -> float:
    if math.isinf(number := float(_short(text))):
        raise ValueError(f"the number {shown(text)} is too large")
    return number


def _integer(text: str) -> int:
    return int(_short(text))


def _short(number: str) -> str:
    # Python takes quadratic time for the conversion, and from 4,300 digits on refuses it:
    # https://docs.python.org/3/library/stdtypes.html#integer-string-conversion-length-limitation
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
