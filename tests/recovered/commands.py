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


def in_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    change(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))


def interrupted_at(
    few: Path, out: Path, fail_after: Callable[..., None], count: int, *options: object
) -> None:
    fail_after(count, OSError(errno.EIO, "Input/output error"))
    assert recover(few, out, *options).exit_code == 1
