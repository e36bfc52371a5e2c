"""Whether a folder may become an output folder: free, or left by a run; apart from the input."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from diver_trt.errors import OutputError
from diver_trt.files import reported, resolved, temporary_of
from diver_trt.lock import LOCK
from diver_trt.manifest import CONTACT_SHEET, JOURNAL, MANIFEST
from diver_trt.recovered.gallery.files import require_place
from diver_trt.recovered.layouts.base import Layout


def require_output(
    output: Path, layout: Layout, read: Iterable[tuple[str, Path]], *, gallery: bool
) -> None:
    """Refuse, before any work, an unusable output folder or a layout that cannot be written.

    Args:
        output: The folder.
        layout: Its layout.
        read: What is read, each with its name in messages.
        gallery: Whether it gets a gallery.

    Raises:
        OutputError: If the folder is a file, holds something else, overlaps what is read, lies in
            a recovered dataset or has somebody else's page, or if the layout needs a package that
            is not installed.
    """
    is_ours = False
    # `require_free` meets the same error, and reports it.
    with suppress(OSError):
        is_ours = any((output / name).is_file() for name in (JOURNAL, MANIFEST, CONTACT_SHEET))
    if not is_ours:  # otherwise `open_output` looks closer
        require_free(output)
    for name, path in read:
        _require_apart(output, path, name)
    _require_outside(output)
    layout.require()
    if gallery:
        require_place(output)


def _require_outside(output: Path) -> None:
    """Refuse an output folder in a recovered dataset, where a trainer would read both."""
    for folder in resolved(output).parents:
        # By names alone: other programs write a manifest.json too, and ours may be large.
        if all((folder / name).is_file() for name in (MANIFEST, CONTACT_SHEET)):
            raise OutputError(
                f"{output}: lies in the recovered dataset {folder}, and a trainer would read the "
                "images of both; choose a folder beside it"
            )


def require_free(root: Path) -> None:
    """Refuse a path that is neither free nor an empty folder.

    Raises:
        OutputError: If it is a file, or a folder that cannot be listed or is not empty.
    """
    # What a run leaves that was killed before its journal was renamed.
    beginning = (LOCK, temporary_of(Path(JOURNAL)).name)
    with reported(root, "listed"):
        if not root.exists():
            return
        is_folder = root.is_dir()
        if is_folder and all(path.name in beginning for path in root.iterdir()):
            return
    problem = "already holds something" if is_folder else "is a file"
    raise OutputError(f"{root}: {problem}; choose a new or empty folder for the recovered images")


def _require_apart(output: Path, other: Path, name: str) -> None:
    """Refuse an output folder that is, lies in, or contains a folder or file that is read."""
    # Through symlinks: two paths may be one folder.
    written, read = resolved(output), resolved(other)
    if written == read or written in read.parents or read in written.parents:
        raise OutputError(
            f"{output}: overlaps {name} {other}; choose a folder of its own for the recovered "
            "images"
        )
