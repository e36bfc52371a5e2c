"""What `bench`, `compare` and `evaluate` print and write alike: their files and their table."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from diver_trt.errors import OutputError, UsageError, printable

if TYPE_CHECKING:
    from rich.table import Table

_UNBOUNDED = 100_000
"""Columns of the table's terminal. A real one wraps whole lines, where rich would wrap every cell
for itself, and cut names until two of them look alike.
"""

JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", help="JSON file to write."),
]
Report = Annotated[
    Path | None,
    typer.Option("--report", metavar="FILE", help="HTML page to write."),
]


def check_files(
    command: str,
    report: Path | None,
    json_file: Path | None = None,
    fields: frozenset[str] = frozenset(),
) -> None:
    """Refuse, before any work, files that cannot be written, or that would replace another.

    Args:
        command: The command, such as `"bench"`.
        report: Its HTML page, or None.
        json_file: Its JSON file, or None.
        fields: Fields of its JSON that no other document has together.

    Raises:
        OutputError: If a folder is missing or read-only, a file is not one to replace, or a symlink
            leads back to itself.
        UsageError: If both are the same file, or one is `-`.
    """
    from diver_trt.files import resolved
    from diver_trt.html_page import is_page

    for option, path in (("--json", json_file), ("--report", report)):
        if path == Path("-"):
            raise UsageError(
                f"{option} -: {command} prints its results as text, and this option takes the name "
                f"of a file. Give one, such as {command}.{'html' if path is report else 'json'}."
            )
    if json_file and report and resolved(json_file) == resolved(report):
        raise UsageError(f"--json and --report are both {report}; expected two files")
    if json_file:
        _require_writable(json_file, "a JSON file")
        own = f"a JSON file of diver-trt {command}"
        _require_own(json_file, own, is_own=_has_fields(json_file, fields))
    if report:
        _require_writable(report, "an HTML file")
        own = f"a report of diver-trt {command}"
        _require_own(report, own, is_own=is_page(report, command))


def _require_writable(path: Path, expected: str) -> None:
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; make it first")
    if path.is_dir():
        raise OutputError(f"{path}: is a folder; expected the name of {expected}")
    if not os.access(path.parent, os.W_OK):
        raise OutputError(f"{path.parent}: is not writable; choose another folder")


def _require_own(path: Path, own: str, *, is_own: bool) -> None:
    # lexists and not exists, because a dangling symlink occupies the name.
    if os.path.lexists(path) and not is_own:
        raise OutputError(
            f"{path}: already exists and is not {own}; choose another name, or remove it"
        )


def _has_fields(path: Path, fields: frozenset[str]) -> bool:
    """Return whether a path is a regular file with a JSON object that has these fields."""
    from diver_trt.documents import Document

    try:
        return not path.is_symlink() and fields <= Document.read(path, OutputError).fields.keys()
    except OutputError:
        return False


def write_json(path: Path, facts: Any) -> None:
    """Write JSON values, and print where they are."""
    _write(path, json.dumps(facts, indent=1, allow_nan=False) + "\n")
    print(f"wrote {printable(str(path))}")


def write_page(path: Path, page: str, *, silent: bool = False) -> None:
    """Write an HTML page, and print where it is unless `silent`."""
    _write(path, page)
    if not silent:
        print(f"wrote {printable(str(path))}; open it in a browser")


def print_table(table: Table) -> None:
    """Print a table of results, as wide as its text needs."""
    from rich.console import Console

    # Names of sets and engines are shown as they are: rich would read `[red]` as a style and
    # `:tiger:` as an emoji.
    console = Console(file=sys.stdout, width=_UNBOUNDED, markup=False, emoji=False, highlight=False)
    with console.capture() as text:
        console.print(table)
    # Not by rich, which ends the process without a word if the pipe is closed.
    print(text.get(), end="")


def _write(path: Path, text: str) -> None:
    from diver_trt.files import reported, writing

    with reported(path), writing(path) as file:
        file.write(text.encode())
