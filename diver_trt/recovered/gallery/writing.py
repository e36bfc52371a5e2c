"""Writing the gallery of a finished dataset: from the distilled images, or from other galleries.

`write_gallery` yields how many samples are on sheets after every sheet, so that its caller can show
the progress. A caller that leaves before the last one leaves no page: the gallery does not exist,
and the same command writes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from diver_trt.errors import DatasetError
from diver_trt.files import file_sha256, reported, writing
from diver_trt.manifest import MANIFEST, RecoveredFolder
from diver_trt.pixels import Pixels
from diver_trt.recipe import Recipe
from diver_trt.recovered.distilled_input import DistilledInput
from diver_trt.recovered.gallery.contents import Contents
from diver_trt.recovered.gallery.files import (
    PAGE,
    Stamp,
    delete_gallery,
    delete_stale,
    is_current,
    read_stamp,
)
from diver_trt.recovered.gallery.page import View, render
from diver_trt.recovered.gallery.sheets import (
    MAX_SIDE,
    Sheet,
    copy_sheets,
    sheets_of_folder,
    suffix_of,
    write_sheets,
)
from diver_trt.recovered.job import Job


def write_gallery(job: Job, root: Path, contents: Contents | None = None) -> Iterator[int]:
    """Write the gallery of a job whose dataset is finished, and yield its progress in samples.

    Args:
        job: The job.
        root: The output folder.
        contents: What the page shows; None reads the manifest.

    Raises:
        OutputError: If a file cannot be written.
        DatasetError: If the manifest is damaged.
    """
    side, unread = min(job.bundle.image_size, MAX_SIDE), list[int]()
    sheets = write_sheets(root, _distilled(job, unread), side)
    yield from _write(root, contents or Contents.read(root), job.recipe, sheets, side, unread)


def _distilled(job: Job, unread: list[int]) -> Iterator[Pixels | None]:
    """Yield the distilled images in order, and add positions of those that cannot be read."""
    distilled = DistilledInput(job)
    for position, sample in enumerate(job.samples):
        try:
            yield distilled.read(sample)
        except DatasetError:
            # It was left out for this, or has vanished or changed since it was recovered, which is
            # no reason to fail now.
            unread.append(position)
            yield None


def copy_galleries(
    folders: Sequence[RecoveredFolder], recipe: Recipe, root: Path, *, wanted: bool
) -> None:
    """Bring the gallery of a dataset up to date whose images were copied from recovered folders.

    The distilled images are not needed: their sheets are copied from the folders' galleries. Those
    of a folder without a gallery are missing on the page.

    Args:
        folders: Where the images come from, in order.
        recipe: Their recipe.
        root: The folder of the dataset, which is finished.
        wanted: Whether it gets a gallery; if not, one that is out of date is deleted.

    Raises:
        OutputError: If a file cannot be written or deleted.
        DatasetError: If the manifest is damaged.
    """
    counts = [len(folder.manifest.samples) + len(folder.manifest.skipped) for folder in folders]
    if not wanted:
        with reported(root):
            delete_stale(root, sum(counts))
        return
    found = [
        sheets_of_folder(folder.root, count) for folder, count in zip(folders, counts, strict=True)
    ]
    # A page has thumbnails of one side: sheets of another are left out.
    side = next((sheets.side for sheets in found if sheets), 0)
    usable = [sheets if sheets and sheets.side == side else None for sheets in found]
    # A folder may have got its gallery since the last time.
    stamp, sheets = read_stamp(root), sum(len(one.names) for one in usable if one)
    if stamp and is_current(root) and stamp.sheets == sheets:
        return
    made = copy_sheets(root, list(zip(usable, counts, strict=True)))
    for _ in _write(root, Contents.read(root), recipe, made, side, ()):
        pass


def _write(
    root: Path,
    contents: Contents,
    recipe: Recipe,
    made: Iterable[Sheet],
    side: int,
    unread: Sequence[int],
) -> Iterator[int]:
    """Write the sheets, and then the page."""
    with reported(root):
        delete_gallery(root, contents.manifest.source.images)
    sheets, done = list[Sheet](), 0
    for sheet in made:
        sheets.append(sheet)
        done += sheet.count
        yield done
    files = sum(sheet.name is not None for sheet in sheets)
    stamp = Stamp(file_sha256(root / MANIFEST), files, suffix_of(side))
    view = View(contents=contents, recipe=recipe, sheets=sheets, side=side, unread=unread)
    with reported(root / PAGE), writing(root / PAGE) as file:
        file.write(render(view, stamp).encode())
