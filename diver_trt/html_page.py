"""Files that commands write, whether one may be written, and the templates of HTML pages."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from diver_trt.contained_file import start_of
from diver_trt.documents import Document
from diver_trt.errors import OutputError, UsageError
from diver_trt.files import resolved
from diver_trt.packages import required

STYLE = Path(__file__).with_suffix(".css")
"""What the pages have in common, `style` in their templates; `compare` has its own."""


def import_jinja() -> Any:
    """Import Jinja.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return required("jinja2", "compare", "writing a report")


def import_report_packages() -> None:
    """Check that Jinja and matplotlib can be imported.

    Raises:
        MissingExtraError: If one of them is not installed.
    """
    import_jinja()
    required("matplotlib", "compare", "writing a report")


def environment() -> Any:
    """Return a Jinja environment for a page, with `style` as a global.

    Raises:
        MissingExtraError: If Jinja is not installed.
    """
    jinja = import_jinja()
    page = jinja.Environment(
        # Names of bundles, models and images come from other people's files.
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A misspelt name raises instead of printing nothing.
        undefined=jinja.StrictUndefined,
    )
    page.globals["style"] = STYLE.read_text(encoding="utf-8")
    return page


def require_writable(path: Path, expected: str) -> None:
    """Refuse, before any work, the path of a file that cannot be written.

    Args:
        path: The file.
        expected: What it is to be, such as `"an HTML file"`.

    Raises:
        OutputError: If its folder does not exist or cannot be written, or if it is a folder.
    """
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; make it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected the name of {expected}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path.parent}: is not writable; choose another folder")


def require_own_page(path: Path, command: str) -> None:
    """Refuse to replace a file that is not an earlier page of the same command.

    Args:
        path: The page.
        command: The command, such as `"compare"`.

    Raises:
        OutputError: If the path holds another file.
    """
    _require_own(path, f"a report of diver-trt {command}", is_own=is_page(path, command))


def require_own_json(path: Path, command: str, fields: frozenset[str]) -> None:
    """Refuse to replace a file that is not an earlier JSON file of the same command.

    Args:
        path: The JSON file.
        command: The command, such as `"bench"`.
        fields: Fields that the command writes, and no other document has together.

    Raises:
        OutputError: If the path holds another file.
    """
    is_own = _has_fields(path, fields)
    _require_own(path, f"a JSON file of diver-trt {command}", is_own=is_own)


def _require_own(path: Path, kind: str, *, is_own: bool) -> None:
    # lexists and not exists, because a dangling symlink occupies the name.
    if os.path.lexists(path) and not is_own:
        raise OutputError(
            f"{path}: already exists and is not {kind}; choose another name, or remove it"
        )


def require_different(json_file: Path, report: Path) -> None:
    """Refuse one path for `--json` and `--report`, however each is spelt.

    Raises:
        UsageError: If both are the same file.
        OutputError: If a symlink in a path leads back to itself.
    """
    if resolved(json_file) == resolved(report):
        raise UsageError(f"--json and --report are both {report}; expected two files")


def _has_fields(path: Path, fields: frozenset[str]) -> bool:
    """Return whether a path is a regular file with a JSON object that has these fields."""
    try:
        return not path.is_symlink() and fields <= Document.read(path, OutputError).fields.keys()
    except OutputError:
        return False


def is_page(path: Path, command: str) -> bool:
    """Return whether a path is a regular file that a command of any release wrote."""
    # The title, unlike the rest of the template, stays the same from release to release.
    return f"<title>diver-trt {command}: ".encode() in start_of(path)
