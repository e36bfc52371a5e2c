"""A comparison as one self-contained HTML page: plots are inline SVG, pictures inline PNG."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from diver_trt import html_page
from diver_trt.comparison.facts import bundle_facts, environment
from diver_trt.comparison.figure_text import (
    show_check,
    show_decibels,
    show_figure,
    show_where,
)
from diver_trt.comparison.figures import lowest_psnr, mean_psnr
from diver_trt.comparison.plots import blocks_plot, spread_plot, steps_plot
from diver_trt.comparison.result import Result
from diver_trt.comparison.samples import worst_samples
from diver_trt.svg_plot import COLOURS

if TYPE_CHECKING:
    from markupsafe import Markup

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(result: Result) -> str:
    """Return the report as one HTML page.

    Raises:
        MissingExtraError: If matplotlib or Jinja is not installed.
    """
    html_page.import_report_packages()
    page = html_page.environment()
    page.filters.update(
        figure=show_figure,
        decibels=show_decibels,
        shown=show_check,
        where=show_where,
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
                (one, lowest_psnr(one.figures.images), mean_psnr(one.figures.images))
                for one in comparisons
            ],
            # Without comparisons every engine failed while it ran, and there is nothing to plot.
            steps_plot=steps_plot(comparisons, result.recipe) if comparisons else "",
            blocks_plot=(
                blocks_plot(comparisons) if any(one.figures.stages for one in comparisons) else ""
            ),
            spread_plot=spread_plot(comparisons, result.reference_images) if comparisons else "",
            samples={
                comparison.name: worst_samples(comparison, result) for comparison in comparisons
            },
            environment=environment(),
            bundles=[bundle_facts(bundle) for bundle in result.bundles],
        )
    )


def _coded(text: str) -> Markup:
    """Return text with `<code>` around each part between backticks."""
    from markupsafe import Markup, escape

    # Escaped first: Markup marks the result as safe, and autoescape then leaves it alone.
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))
