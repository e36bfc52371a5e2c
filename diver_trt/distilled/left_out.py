"""What a class-folder tree holds beside the images that are read: counted while it is listed, and named in one note."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

from diver_trt.distilled.image_kinds import SUFFIXES

_SYSTEM_FOLDERS = frozenset(
    {
        *("@eadir", "@recycle", "#recycle", "#snapshot", "@tmp", "__macosx", "lost+found"),
        *("$recycle.bin", "system volume information", "recycler", "__pycache__"),
    }
)
"""Folders that operating systems and network drives make; pictures in them are thumbnails, copies or deleted ones."""

_SYSTEM_FILES = frozenset(
    {"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"}
)
"""Files that operating systems make."""

_COMPANIONS = frozenset(
    {
        *("log", "logs", "runs", "wandb", "tensorboard", "tb", "ckpt", "ckpts", "checkpoint"),
        *("checkpoints", "vis", "visuals", "visualization", "visualizations", "figures", "figs"),
        *(
            "models",
            "weights",
            "plots",
            "preview",
            "previews",
            "contact_sheet",
            "contact_sheets",
            "grids",
            "tmp",
        ),
    }
)
"""Folders that methods and people put beside class folders; one that is called by a class of the model is a class."""

_NAMED, _KINDS, _LOOKED_THROUGH = 4, 8, 1000
"""Examples and suffixes in a note; folders that are looked through to count the images of one that is not read."""


def is_system_file(name: str) -> bool:
    """Return whether a file or folder is hidden, or a file is one of an operating system's own."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FILES


def is_system_folder(name: str) -> bool:
    """Return whether a folder is one of an operating system's own."""
    return name.casefold() in _SYSTEM_FOLDERS


def is_companion(name: str) -> bool:
    """Return whether a folder is usually one of logs or previews."""
    return name.casefold() in _COMPANIONS


@dataclass(slots=True)
class LeftOut:
    """What is not read.

    Attributes:
        root: The dataset, which names are relative to.
        files: Files in class folders whose suffix is not an image's.
        folders: Folders within class folders.
        irregular: FIFOs, devices and sockets that are called like images.
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
        """Return one note that counts and names all of it, or none."""
        parts = []
        if self.strays:
            parts.append(
                f"{_counted(self.strays, 'folder')} beside the classes ({self._folders(self.strays)})"
            )
        if self.folders:
            parts.append(
                f"{_counted(self.folders, 'folder')} within classes ({self._folders(self.folders)})"
            )
        if self.files:
            kinds = Counter(path.suffix.lower() or "without suffix" for path in self.files)
            named = [f"{count} {kind}" for kind, count in kinds.most_common(_KINDS)]
            parts.append(
                f"{_counted(self.files, 'file')} in classes ({_joined(named, len(kinds))}, "
                f"first {self._name(self.files[0])})"
            )
        if self.irregular:
            parts.append(f"{len(self.irregular)} not regular ({self._names(self.irregular)})")
        if self.loose:
            parts.append(
                f"{_counted(self.loose, 'image')} beside the class folders ({self._names(self.loose)})"
            )
        return (f"not read: {'; '.join(parts)}",) if parts else ()

    def _folders(self, folders: list[Path]) -> str:
        named = []
        for folder in folders[:_NAMED]:
            images = count_images(folder)
            named.append(
                self._name(folder) + (f" with {_number(images, 'image')}" if images else "")
            )
        return _joined(named, len(folders))

    def _names(self, paths: list[Path]) -> str:
        return _joined([self._name(path) for path in paths[:_NAMED]], len(paths))

    def _name(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def count_images(folder: Path) -> int:
    """Return how many image files lie in a folder at any depth, as far as its first thousand folders tell."""
    return sum(
        not name.startswith(".") and name.lower().endswith(SUFFIXES)
        for _, _, names in islice(os.walk(folder), _LOOKED_THROUGH)
        for name in names
    )


def _counted(paths: list[Path], noun: str) -> str:
    return _number(len(paths), noun)


def _number(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _joined(named: list[str], of: int) -> str:
    return ", ".join([*named, "…"] if of > len(named) else named)
