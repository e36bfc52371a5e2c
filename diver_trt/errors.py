"""Everything that diver-trt raises on purpose.

    DiverError
    ├── UsageError           an argument that is unknown, out of range or contradictory; exit code 2
    │   └── RecipeError          the same for the settings of the method
    ├── BundleError          a bundle that is missing, damaged, or of another schema
    ├── DatasetError         distilled images or class folders that cannot be read as asked
    ├── OutputError          a place that cannot or must not be written
    ├── ExportError          a model that cannot be exported, or a graph that fails its checks
    ├── EngineError          an engine that cannot be built, opened, fed or run
    │   └── DeviceMemoryError    there is not enough memory on the device
    └── MissingExtraError    an optional package is not installed; the message is the install line

A message says what was found, what was expected, and what to do. What it quotes from a file goes
through `shown`.
"""

from __future__ import annotations

MAX_SHOWN = 200


class DiverError(Exception):
    """Base of all errors that a user can act on; the command line prints it as one line."""


class UsageError(DiverError, ValueError):
    """A value of an option that does not exist, is out of range or contradicts another.

    No file is at fault, and another run with the same value fails too: the command line exits with
    2, as for an unknown option.
    """


class RecipeError(UsageError):
    """Settings of the method that contradict each other or lie out of range."""


class BundleError(DiverError):
    """A bundle that is missing, damaged, or written by another schema."""


class DatasetError(DiverError):
    """Distilled images, class folders or class maps that cannot be read as asked."""


class OutputError(DiverError):
    """A place that cannot be written, or that holds something else already."""


class ExportError(DiverError):
    """A model that cannot become a bundle, or a graph that fails the exporter's own checks."""


class EngineError(DiverError):
    """An engine that cannot be built, opened, fed or run."""


class DeviceMemoryError(EngineError):
    """There is not enough memory on the device, or no plan fits the budget."""


def printable(foreign: str) -> str:
    """Escape line breaks and control characters in untrusted text."""
    return (
        foreign
        if foreign.isprintable()
        else "".join(part if part.isprintable() else ascii(part)[1:-1] for part in foreign)
    )


def shown(foreign: str) -> str:
    """Return the same for a message, which quotes the first `MAX_SHOWN` characters only."""
    return printable(foreign) if len(foreign) <= MAX_SHOWN else f"{printable(foreign[:MAX_SHOWN])}…"


class MissingExtraError(DiverError, ImportError):
    """An optional package is not installed; the message names the line that installs it.

    Attributes:
        command: That line.
    """

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        self.command = f"pip install 'diver-trt[{extra}]'"
        super().__init__(f"{purpose} needs {package}, which is not installed; run `{self.command}`")
