"""The commands as a user runs them, for the tests of this folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from benchmarks.crash import RECIPE, different
from diver_trt.runtime.backends.onnx import OnnxEngine
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


def journal_of(output: Path) -> list[Any]:
    return [json.loads(line) for line in (output / "journal.jsonl").read_text().splitlines()]


def put_journal(output: Path, values: list[Any]) -> None:
    lines = "".join(json.dumps(value) + "\n" for value in values)
    (output / "journal.jsonl").write_text(lines)


def journal_keys(output: Path) -> list[str]:
    return [entry["key"] for entry in journal_of(output)[1:]]


def during(monkeypatch: pytest.MonkeyPatch, action: Callable[[], object]) -> None:
    """Do something once, while the first batch is denoised."""
    run, runs = OnnxEngine.run, iter(range(10_000))

    def acting(self: OnnxEngine) -> None:
        if self._name == "denoiser" and next(runs) == 0:
            action()
        run(self)

    monkeypatch.setattr(OnnxEngine, "run", acting)


def recovered_shards(source: Path, folder: Path, of: int, *options: object) -> list[Path]:
    """Recover every shard of a dataset into `part1`, `part2` and so on."""
    return [
        recovered(source, folder / f"part{i}", "--shard", f"{i}/{of}", *options)
        for i in range(1, of + 1)
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
    few: Path, out: Path, fail_after: Callable[[int], None], count: int, *options: object
) -> None:
    fail_after(count)
    assert recover(few, out, *options).exit_code == 1
