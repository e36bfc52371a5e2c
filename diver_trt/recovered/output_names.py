"""The names that a run gives to its files, so that nothing else in a folder is read or deleted."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from diver_trt.documents import Document
from diver_trt.errors import OutputError
from diver_trt.records import Shard, position_of
from diver_trt.recovered.layouts import LAYOUTS
from diver_trt.recovered.layouts.base import Layout
from diver_trt.structs import Size, one_of


@dataclass(frozen=True, slots=True)
class OutputNames:
    """The names that a run gives to its files.

    Attributes:
        layout: The layout, of a shard if the run recovers one.
        images: How many images the whole dataset has.
    """

    layout: Layout
    images: int

    @classmethod
    def of(cls, head: Document) -> OutputNames:
        """Return the names of the run whose journal or manifest begins with this head.

        Raises:
            DiverError: If the head lacks a field.
        """
        # Not the whole head: --overwrite also deletes a run whose other fields are damaged.
        name = head.take(Annotated[str, one_of(tuple(LAYOUTS))], "layout", "name")
        # Missing and null both mean a whole dataset.
        shard = head.fields.get("shard") and head.take(Shard, "shard")
        layout = LAYOUTS[name].of_shard() if shard else LAYOUTS[name]
        return cls(layout, head.take(Size, "source", "images"))

    def has_companion(self, name: str) -> bool:
        """Return whether a file beside the images may have this name."""
        return self.layout.has_companion(name, self.images)

    def has_image(self, name: str) -> bool:
        """Return whether an image may have this name."""
        # At most 18 digits: more do not fit 64 bits, and no dataset has as many images. Numbers
        # beyond the dataset's images are somebody else's files.
        match = re.fullmatch(f"{self.layout.folder}/([0-9]{{5,18}})\\.png", name)
        return match is not None and int(match[1]) < self.images

    def refuse_links(self, root: Path) -> None:
        """Refuse an output folder in which a folder of images is a symlink.

        Raises:
            OutputError: If one is.
            OSError: If the folder cannot be listed.
        """
        # Files need no such check: they are replaced by rename and deleted by unlink, and neither
        # follows a symlink in the last part of a path, only in those before it:
        # https://man7.org/linux/man-pages/man7/path_resolution.7.html
        parts = self.layout.folder.split("/")
        patterns = ["/".join(parts[: depth + 1]) for depth in range(len(parts))]
        folders = [root]
        for pattern in patterns:
            # Level by level, so that a symlink is found before anything below it is listed.
            below = [folder for parent in folders for folder in parent.iterdir()]
            folders = []
            for folder in below:
                if not re.fullmatch(pattern, folder.relative_to(root).as_posix()):
                    continue
                if folder.is_symlink():
                    raise OutputError(
                        f"{folder}: is a symlink, and images are only written inside the output "
                        "folder; delete it, or choose another folder"
                    )
                if folder.is_dir():
                    folders.append(folder)


def whole_name(name: str) -> str:
    """Return the final name of a file that is still being written, see `files.temporary_of`."""
    return re.sub(r"(^|/)\.([^/]+)\.partial$", r"\1\2", name)


class ImagePaths:
    """Where each image of a whole dataset goes, by key.

    Two indices of one class may share its folder; the second one's numbers continue the first's.

    Args:
        layout: The layout.
        samples: Key, class in the model and wnid of each sample, in the dataset's order.

    Raises:
        OutputError: If folders are named by wnid and a class has none.
    """

    def __init__(self, layout: Layout, samples: Iterable[tuple[str, int, str | None]]) -> None:
        self._layout = layout
        # Of each index the first number in its folder, and the wnid. The paths follow from them,
        # and would take as much memory as the samples.
        self._classes: dict[int, tuple[int, str | None]] = {}
        counts = Counter[int]()
        for key, label, wnid in samples:
            index, _ = position_of(key)
            if index not in self._classes:
                first = counts[label] if layout.shares_folders else 0
                layout.image_path(index, first, wnid)  # raises for a class without a folder
                self._classes[index] = first, wnid
            counts[label] += 1

    def __getitem__(self, key: str) -> str:
        index, number = position_of(key)
        first, wnid = self._classes[index]
        return self._layout.image_path(index, first + number, wnid)
