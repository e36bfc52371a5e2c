"""The files and folders of a class-folder tree that are not read, collected into one note."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from diver_trt.counted import counted
from diver_trt.distilled.image_kinds import SUFFIXES

_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@recycle", "#recycle", "#snapshot", "@tmp", "__macosx", "lost+found"),
        *("$recycle.bin", "system volume information", "recycler", "__pycache__"),
    }
)
"""Folders that operating systems and network drives create."""
# Pictures in them are thumbnails, copies or deleted ones.

_SYSTEM_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
)
"""Files that operating systems create."""
# macOS keeps the icon of a folder in a file whose name ends in a carriage return.

_COMPANIONS = frozenset(
    {
        *("log", "logs", "runs", "wandb", "tensorboard", "tb", "ckpt", "ckpts", "checkpoint"),
        *("checkpoints", "vis", "visuals", "visualization", "visualizations", "figures", "figs"),
        *("models", "weights", "plots", "preview", "previews", "contact_sheet"),
        *("contact_sheets", "grids", "tmp"),
    }
)
"""Folders that methods and people put beside class folders."""
# A class of the model may have such a name; the folder is a class then.

_EXAMPLES, _SUFFIXES = 4, 8
"""Maximum numbers of examples and of suffixes in a note."""

_SEARCHED = 1000
"""Maximum number of folders that are searched to count the images in one that is not read."""


def is_system_file(name: str) -> bool:
    """Return whether a file or folder is hidden, or an operating system's file."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FILES


def is_system_folder(name: str) -> bool:
    """Return whether a folder is an operating system's."""
    return name.casefold() in _SYSTEM_FOLDERS


def is_companion(name: str) -> bool:
    """Return whether a folder usually holds logs or previews."""
    return name.casefold() in _COMPANIONS


@dataclass(slots=True)
class LeftOut:
    """The entries that are not read.

    Attributes:
        root: The dataset, which names are relative to.
        files: Files in class folders without an image's suffix.
        folders: Folders within class folders.
        irregular: FIFOs, devices and sockets with an image's suffix.
        loose: Images beside the class folders.
        strays: Folders beside the class folders that are not a class.
    """

    root: Path
    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    irregular: list[Path] = field(default_factory=list)
    loose: list[Path] = field(default_factory=list)
    strays: list[Path] = field(default_factory=list)

    def notes(self) -> tuple[str, ...]:
        """Return one note that counts and names all of them; empty if everything is read."""
        parts = []
        if self.strays:
            count = counted(len(self.strays), "folder")
            parts.append(f"{count} beside the classes ({self._folders(self.strays)})")
        if self.folders:
            count = counted(len(self.folders), "folder")
            parts.append(f"{count} within classes ({self._folders(self.folders)})")
        if self.files:
            kinds = Counter(path.suffix.lower() or "without suffix" for path in self.files)
            named = [f"{count} {kind}" for kind, count in kinds.most_common(_SUFFIXES)]
            parts.append(
                f"{counted(len(self.files), 'file')} in classes ({_joined(named, len(kinds))}, "
                f"first {self._name(self.files[0])})"
            )
        if self.irregular:
            parts.append(f"{len(self.irregular)} not regular ({self._names(self.irregular)})")
        if self.loose:
            count = counted(len(self.loose), "image")
            parts.append(f"{count} beside the class folders ({self._names(self.loose)})")
        return (f"not read: {'; '.join(parts)}",) if parts else ()

    def _folders(self, folders: list[Path]) -> str:
        named = []
        for folder in folders[:_EXAMPLES]:
            images = count_images(folder)
            with_images = f" with {counted(images, 'image')}" if images else ""
            named.append(self._name(folder) + with_images)
        return _joined(named, len(folders))

    def _names(self, paths: list[Path]) -> str:
        return _joined([self._name(path) for path in paths[:_EXAMPLES]], len(paths))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def count_images(folder: Path) -> int:
    """Return the number of image files at any depth in a folder, in at most `_SEARCHED` folders."""
    return sum(
        # Beside each file, macOS leaves `._name` with the same suffix on foreign drives.
        not name.startswith(".") and name.lower().endswith(SUFFIXES)
        for _, _, names in islice(os.walk(folder), _SEARCHED)
        for name in names
    )


def _joined(named: list[str], of: int) -> str:
    return ", ".join([*named, "…"] if of > len(named) else named)
