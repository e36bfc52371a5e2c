"""Optional packages: imported where they are needed, and the versions of those installed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from traceback import walk_tb
from types import ModuleType

from diver_trt.errors import DiverError, MissingExtraError, first_line, printable

_REASON_CHARACTERS = 500  # the linker states what is wrong behind the path of a library


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
    except Exception as cause:
        raise _failure(cause, module, package or module, extra, purpose) from cause


@contextmanager
def importing(extra: str, purpose: str) -> Iterator[None]:
    """Report the package that fails in the block, which imports modules and does nothing else.

    The modules may be ours, which import optional packages as other modules do.

    Args:
        extra: The extra that installs the packages.
        purpose: What needs them, as the message begins.

    Raises:
        MissingExtraError: If one is not installed, or cannot be imported.
    """
    try:
        yield
    except DiverError:  # a module of ours may have reported its package already
        raise
    except Exception as cause:
        module = _package(cause)
        if module is None:
            raise
        raise _failure(cause, module, module, extra, purpose) from cause


def _failure(
    cause: Exception, module: str, package: str, extra: str, purpose: str
) -> MissingExtraError:
    """Return the error for a package whose import raised an exception of any kind.

    torch raises OSError or ValueError for a library that it cannot load, numpy AttributeError for a
    package that was compiled for another numpy, and diffusers and transformers RuntimeError or
    ModuleNotFoundError in place of whatever a module of theirs raises.
    """
    root = _root(cause)
    # A package that is installed may lack a library, or a module of another package.
    absent = root.name if isinstance(root, ModuleNotFoundError) else None
    reason = printable(first_line(root)[:_REASON_CHARACTERS])
    problem = None if f"{module}.".startswith(f"{absent}.") else reason
    return MissingExtraError(package, extra, purpose, problem)


def _root(cause: BaseException) -> BaseException:
    """Return what an exception was raised from in the first place."""
    while cause.__cause__ is not None:
        cause = cause.__cause__
    return cause


def _package(cause: BaseException) -> str | None:
    """Return the package whose import failed, or None if our own code did."""
    root = _root(cause)
    if isinstance(root, ImportError) and root.name:
        modules = [root.name]
    else:
        # The first two frames are this file's and the block's own.
        frames = [*walk_tb(cause.__traceback__)][2:]
        modules = [str(frame.f_globals["__name__"]) for frame, _ in frames]
    packages = (module.partition(".")[0] for module in modules)
    return next((name for name in packages if name not in ("diver_trt", "importlib")), None)


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the version of each package that is installed."""
    found = {}
    for package in packages:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
