"""The distilled digits that come with the package, for trying it and for comparing engines."""

from __future__ import annotations

from pathlib import Path

DIGITS = "digits"
"""The input that means them, unless a file or folder has that name."""


def default_images() -> Path:
    """Return the distilled digits' folder: in an installed wheel, or in a checkout's examples."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "engines" / "digits-distilled"
    return (
        installed
        if installed.is_dir()
        else package.parent / "examples" / "digits" / "distilled" / "ipc1"
    )


def find_source(path: Path) -> Path:
    """Return the path of an input; `digits` is short for the digits' folder."""
    return default_images() if str(path) == DIGITS and not path.exists() else path
