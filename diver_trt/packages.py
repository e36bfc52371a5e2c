"""Optional packages: imported where they are needed, and the versions of those installed."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType

from diver_trt.errors import MissingExtraError, first_line, shown


def required(module: str, extra: str, purpose: str, package: str | None = None) -> ModuleType:
    """Import a module of an optional package.

    Args:
        module: The module.
        extra: The extra that installs it.
        purpose: What needs it, as the message begins.
        package: Its package, where that has another name.

    Raises:
        MissingExtraError: If it is not installed, or cannot be imported.
    """
    try:
        return import_module(module)
    except ImportError as cause:
        # A package that is installed may lack a library, or a module of another package.
        absent = cause.name if isinstance(cause, ModuleNotFoundError) else None
        problem = None if f"{module}.".startswith(f"{absent}.") else shown(first_line(cause))
        raise MissingExtraError(package or module, extra, purpose, problem) from cause


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
