"""The templates of HTML pages, and which files are pages of ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diver_trt.contained_file import start_of
from diver_trt.packages import required

STYLE = Path(__file__).with_suffix(".css")
"""What the pages have in common, `style` in their templates; `compare` has its own."""


def import_jinja() -> Any:
    """Import Jinja.

    Raises:
        MissingExtraError: If it is not installed.
    """
    return required("jinja2", "compare", "writing a report")


def import_report_packages() -> None:
    """Check that Jinja and matplotlib can be imported.

    Raises:
        MissingExtraError: If one of them is not installed.
    """
    import_jinja()
    required("matplotlib", "compare", "writing a report")


def environment() -> Any:
    """Return a Jinja environment for a page, with `style` as a global.

    Raises:
        MissingExtraError: If Jinja is not installed.
    """
    jinja = import_jinja()
    page = jinja.Environment(
        # Names of bundles, models and images come from other people's files.
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A misspelt name raises instead of printing nothing.
        undefined=jinja.StrictUndefined,
    )
    page.globals["style"] = STYLE.read_text(encoding="utf-8")
    return page


def is_page(path: Path, command: str) -> bool:
    """Return whether a path is a regular file that a command of any release wrote."""
    # The title, unlike the rest of the template, stays the same from release to release.
    return f"<title>diver-trt {command}: ".encode() in start_of(path)
