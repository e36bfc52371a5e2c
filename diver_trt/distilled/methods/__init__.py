"""The methods whose files are read: one file per family, and this registry.

Adding a method takes one file that defines a `base.Method`, and one entry of `METHODS`. Other code
reads the method's attributes and never branches on its name.
"""

# Nothing here imports numpy, so that `diver-trt --help`, which lists the methods, stays fast.

from __future__ import annotations

import copyreg
import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from diver_trt.distilled.methods.base import Found, Holds, Method, Parts, Series
from diver_trt.distilled.methods.d4m import D4M
from diver_trt.distilled.methods.dc import DC
from diver_trt.distilled.methods.frepo import FREPO, KIP
from diver_trt.distilled.methods.glad import GLAD
from diver_trt.distilled.methods.idc import DREAM, IDC
from diver_trt.distilled.methods.minimax import MINIMAX
from diver_trt.distilled.methods.mtt import MTT
from diver_trt.distilled.methods.ncfm import NCFM
from diver_trt.distilled.methods.plain import ARRAYS, FOLDERS, RECOVERED
from diver_trt.distilled.methods.rded import RDED
from diver_trt.distilled.methods.sre2l import SRE2L
from diver_trt.errors import DatasetError

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        FOLDERS,
        SRE2L,
        RDED,
        D4M,
        MINIMAX,
        MTT,
        GLAD,
        DC,
        IDC,
        DREAM,
        NCFM,
        FREPO,
        KIP,
        ARRAYS,
    )
}


def _registered(name: str) -> Method:
    return METHODS.get(name, RECOVERED)


# Pickled by name, since functions such as those of `stems` cannot be pickled.
copyreg.pickle(Method, lambda method: (_registered, (method.name,)))


def names_of(holds: Holds) -> list[str]:
    """Return the names of the methods that write image folders, or of those that write tensors."""
    return [method.name for method in METHODS.values() if method.holds == holds]


def find_method(name: str, holds: Holds) -> Method:
    """Return the method that `--format` names, a name of `METHODS`.

    Raises:
        DatasetError: If that method does not write what the input holds.
    """
    method = METHODS[name]
    if method.holds != holds:
        raise DatasetError(
            f"--format {name} is a format of {method.holds}, but the input holds {holds}; expected "
            f"one of {', '.join(names_of(holds))}"
        )
    return method


def recognise(found: Found) -> Method:
    """Return the first method that recognises files, or the usual one of their structure."""
    # In the order of `METHODS`: where two methods could recognise a file, the earlier one gets it.
    writers = [method for method in METHODS.values() if found.structure in method.structures]
    for method in writers:
        if method.recognises and method.recognises(found):
            return method
    return next(method for method in writers if not method.recognises)


def series_of(file: Path) -> Series | None:
    """Return the series that a file belongs to by its name, or None."""
    series = (series for method in METHODS.values() for series in method.series)
    return next((one for one in series if one.matches(file)), None)


def is_beside_images(file: Path) -> bool:
    """Return whether a file has the name of one that methods save beside their images."""
    return any(re.match(method.beside, file.stem) for method in METHODS.values() if method.beside)


def is_named_as_images(file: Path) -> bool:
    """Return whether only the images of some method have such a file name."""
    return any(
        re.match(method.file_names, file.stem) for method in METHODS.values() if method.file_names
    )


def are_parts(folders: Sequence[str]) -> bool:
    """Return whether folder names are a method's names for the parts of one set."""
    return any(_numbers_of(parts, folders) for parts in _all_parts())


def missing_part(folders: Sequence[str]) -> int | None:
    """Return the number of the first part that a set lacks before its last one, or None."""
    for parts in _all_parts():
        if numbers := set(_numbers_of(parts, folders)):
            # The last part may also be missing, but nothing shows that.
            lacking = next(number for number in count(parts.first) if number not in numbers)
            return lacking if lacking < max(numbers) else None
    return None


def _numbers_of(parts: Parts, folders: Sequence[str]) -> list[int]:
    """Return the number in each name, or nothing if they are not parts of one set."""
    matches = [match for name in folders if (match := re.fullmatch(parts.pattern, name))]
    # `A_phase0` and `B_phase1` belong to two runs.
    one_set = len({match.groupdict().get("set") for match in matches}) == 1
    if not one_set or len(matches) < len(folders):
        return []
    return [int(match["number"]) for match in matches]


def _all_parts() -> Iterator[Parts]:
    return (method.parts for method in METHODS.values() if method.parts)


def parts_examples() -> str:
    """Return examples of the names of parts, as messages print them."""
    return " or ".join(parts.example for parts in _all_parts())
