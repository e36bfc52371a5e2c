"""A comparison as one self-contained HTML page: plots are inline SVG, pictures inline PNG."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diver_trt.comparison.facts import bundle_facts, environment
from diver_trt.comparison.figure_text import show_check, show_decibels, show_figure
from diver_trt.comparison.figures import lowest_psnr, mean_psnr
from diver_trt.comparison.plots import COLOURS, blocks_plot, spread_plot, steps_plot
from diver_trt.comparison.result import Result
from diver_trt.comparison.samples import worst_samples
from diver_trt.contained_file import open_contained
from diver_trt.errors import MissingExtraError, OutputError

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def is_report(path: Path) -> bool:
    """Return whether a path is a regular file that `render` of any release wrote."""
    try:
        with open_contained(path, path.parent, OutputError) as file:
            start = file.read(1024)
    except (OSError, OutputError):
        return False
    # The title, unlike the rest of the template, stays the same from release to release.
    return not path.is_symlink() and b"<title>diver-trt compare: " in start


def render(result: Result) -> str:
    """Return the report as one HTML page.

    Raises:
        MissingExtraError: If matplotlib or Jinja is not installed.
    """
    jinja = import_report_packages()
    page = jinja.Environment(
        # Names of bundles, models and images come from other people's files.
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        # A misspelt name raises instead of printing nothing.
        undefined=jinja.StrictUndefined,
    )
    page.filters.update(
        figure=show_figure,
        decibels=show_decibels,
        shown=show_check,
        coded=_coded,
        percent=lambda share: f"{share:.1%}",
    )
    comparisons = result.comparisons
    return str(
        page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            result=result,
            colours={
                comparison.name: COLOURS[i % len(COLOURS)]
                for i, comparison in enumerate(comparisons)
            },
            rows=[
                (comparison, lowest_psnr(comparison.images), mean_psnr(comparison.images))
                for comparison in comparisons
            ],
            steps_plot=steps_plot(comparisons, result.recipe) if comparisons else "",
            blocks_plot=blocks_plot(comparisons) if comparisons else "",
            spread_plot=spread_plot(comparisons, result.reference_images) if comparisons else "",
            samples={
                comparison.name: worst_samples(comparison, result) for comparison in comparisons
            },
            environment=environment(),
            bundles=[bundle_facts(bundle) for bundle in result.bundles],
        )
    )


def import_report_packages() -> Any:
    """Import Jinja, and check that matplotlib can be imported.

    Raises:
        MissingExtraError: If one of them is not installed.
    """
    try:
        import jinja2
        import matplotlib  # noqa: F401
    except ImportError as cause:
        raise MissingExtraError(
            cause.name or "matplotlib", "compare", "writing a report"
        ) from cause
    return jinja2


def _coded(text: str) -> Markup:
    """Return text with `<code>` around each part between backticks."""
    from markupsafe import Markup, escape

    # Escaped first: Markup marks the result as safe, and autoescape then leaves it alone.
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
