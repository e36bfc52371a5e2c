"""Everything that diver-trt raises on purpose.

    DiverError
    ├── UsageError           an argument that is unknown, out of range or contradictory; exit code 2
    │   └── RecipeError          the same for the settings of the method
    ├── BundleError          a bundle that is missing, damaged, or of another schema
    ├── DatasetError         distilled images or class folders that cannot be read as asked
    ├── OutputError          a place that cannot or must not be written
    ├── ExportError          a model that cannot be exported, or a graph that fails its checks
    ├── EngineError          an engine that cannot be built, opened, fed or run
    │   └── DeviceMemoryError    there is not enough memory on the device or the host
    └── MissingExtraError    an optional package is missing; the message is the install line

A message states what was found, what was expected, and what to do. Text that it quotes from a file
goes through `shown`.
"""

from __future__ import annotations

MAX_SHOWN = 200
"""Characters of untrusted text in a message."""


class DiverError(Exception):
    """Base of all errors that a user can act on; the command line prints it as one line."""


class UsageError(DiverError, ValueError):
    """A value of an option that does not exist, is out of range or contradicts another.

    No file is at fault, and the same command fails again: the command line exits with 2, as for an
    unknown option.
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
    """There is not enough memory on the device or the host, or no plan fits the budget.

    Attributes:
        engine: The engine that `auto` had chosen, so that a smaller batch is tried on the same one;
            None if the engine was named.
    """

    engine: str | None = None


def printable(foreign: str) -> str:
    """Escape line breaks and control characters in untrusted text."""
    # Control characters could move the cursor, forge lines or change settings of a terminal.
    return (
        foreign
        if foreign.isprintable()
        else "".join(part if part.isprintable() else ascii(part)[1:-1] for part in foreign)
    )


def shown_value(value: object) -> str:
    """Return a value's `repr`, escaped and shortened for a message."""
    try:
        return shown(repr(value))
    except ValueError:
        # Python refuses to convert integers of more than 4,300 digits:
        # https://docs.python.org/3/library/stdtypes.html#int-max-str-digits
        bits = value.bit_length() if isinstance(value, int) else 0
        return f"a number of {bits:,} bits" if bits else f"a {type(value).__name__}"


def shown(foreign: str) -> str:
    """Escape untrusted text for a message, and cut it after `MAX_SHOWN` characters."""
    # Cut before it is escaped, so that an escape is not split and long texts cost nothing.
    return printable(foreign) if len(foreign) <= MAX_SHOWN else f"{printable(foreign[:MAX_SHOWN])}…"


def first_line(cause: BaseException) -> str:
    """Return the first line of an exception's message, or its class's name if it has no message."""
    lines = (line.strip() for line in str(cause).splitlines())
    # Exceptions of torch, TensorRT's compiler and ONNX Runtime may be empty.
    return next(filter(None, lines), type(cause).__name__)


class MissingExtraError(DiverError, ImportError):
    """An optional package is missing; the message names the command that installs it.

    Attributes:
        command: That command.
        problem: Why an installed package cannot be imported, or None if it is not installed.
    """

    def __init__(self, package: str, extra: str, purpose: str, problem: str | None = None) -> None:
        # pip leaves a package that is installed as it is, broken or not.
        self.command = (
            f"pip install --force-reinstall {package}"
            if problem
            else f"pip install 'diver-trt[{extra}]'"
        )
        self.problem = problem
        found = (
            f"is installed but cannot be imported ({problem}); reinstall it with"
            if problem
            else "is not installed; run"
        )
        super().__init__(f"{purpose} needs {package}, which {found} `{self.command}`")
