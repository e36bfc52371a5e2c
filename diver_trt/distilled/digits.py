"""The distilled digits that come with the package, for trying it and for comparing engines."""

from __future__ import annotations

from pathlib import Path

DIGITS = "digits"
"""What stands for them as an input, where no file or folder has that name."""


def default_images() -> Path:
    """Return where the distilled digits are: inside an installed wheel, or among the examples of a checkout."""
    package = Path(__file__).resolve().parent.parent
    installed = package / "engines" / "digits-distilled"
    return (
        installed
        if installed.is_dir()
        else package.parent / "examples" / "digits" / "distilled" / "ipc1"
    )


def find_source(path: Path) -> Path:
    """Return the path of an input, which `digits` is a short name of."""
    return default_images() if str(path) == DIGITS and not path.exists() else path
