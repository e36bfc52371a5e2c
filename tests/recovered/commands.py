"""The commands as a user runs them, for the tests of this folder."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from typer.testing import Result

from benchmarks.crash import RECIPE, different
from tests.cli.command import run
from tests.edited_json import json_file


def recover(source: Path, output: Path, *options: object) -> Result:
    return run("recover", source, output, *RECIPE, *options)


def recovered(source: Path, output: Path, *options: object) -> Path:
    result = recover(source, output, *options)
    assert result.exit_code == 0, result.output
    return output


def different_data(first: Path, second: Path) -> list[str]:
    """Return the files that differ, except views of the data: the contact sheet and the gallery."""
    views = ("contact_sheet.png", "index.html", "gallery_")
    return [name for name in different(first, second) if not name.startswith(views)]


def journal_keys(output: Path) -> list[str]:
    return [
        json.loads(line)["key"] for line in (output / "journal.jsonl").read_text().splitlines()[1:]
    ]


def merge(*folders: Path, options: tuple[str, ...] = ()) -> Result:
    return run("merge", *folders, *options)


def manifest_of(folder: Path) -> dict[str, Any]:
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest


def in_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    with json_file(folder / "manifest.json") as manifest:
        change(manifest)


def interrupted_at(
    few: Path, out: Path, fail_after: Callable[..., None], count: int, *options: object
) -> None:
    fail_after(count, OSError(errno.EIO, "Input/output error"))
    assert recover(few, out, *options).exit_code == 1
