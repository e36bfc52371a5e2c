"""The digits that come with the package, a model and distilled images: the defaults and an example.

An installed wheel has them in its own folder, a checkout has them at its root.
"""

from __future__ import annotations

from pathlib import Path

DIGITS = "digits"
"""The input that means the distilled images, unless a file or folder has that name."""

_PACKAGE = Path(__file__).resolve().parent
_CHECKOUT = _PACKAGE.parent


def default_bundle() -> Path:
    """Return the folder of the digits model."""
    return _first_folder(_PACKAGE / "engines" / "digits", _CHECKOUT / "engines" / "digits")


def default_images() -> Path:
    """Return the folder of the distilled digits."""
    return _first_folder(
        _PACKAGE / "engines" / "digits-distilled",
        _CHECKOUT / "examples" / "digits" / "distilled" / "ipc1",
    )


def find_source(path: Path) -> Path:
    """Return the path of an input; `digits` is short for the distilled digits' folder."""
    return default_images() if str(path) == DIGITS and not path.exists() else path


def _first_folder(installed: Path, checkout: Path) -> Path:
    return installed if installed.is_dir() else checkout
