"""The plots of a report, as inline SVG that follows the page's text colour."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diver_trt.comparison.verdict import Comparison
from diver_trt.pixels import Pixels
from diver_trt.recipe import Recipe
from diver_trt.svg_plot import COLOURS, INK, legend_label, new_axes, to_svg


def steps_plot(comparisons: Sequence[Comparison], recipe: Recipe) -> str:
    """Return the error of every step as SVG: alone on the left, in the free run on the right."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = new_axes(
        2, "Step k (time runs to the right)", "Relative L2 of the next latent"
    )
    for axes, title, which in (
        (left, "Each step alone, on the reference's latent", "forced"),
        (right, "Free run, on the engine's own latent", "free"),
    ):
        axes.set_title(title, loc="left")
        for i, comparison in enumerate(comparisons):
            errors = [getattr(step, which).relative_l2 for step in comparison.figures.steps]
            axes.plot(
                [step.k for step in comparison.figures.steps],
                _drawable(errors),
                color=COLOURS[i % len(COLOURS)],
                label=legend_label(comparison.name),
                lw=1.8,
            )
        if recipe.guided_steps:
            first, last = recipe.guided_steps[0], recipe.guided_steps[-1]
            axes.axvspan(last - 0.5, first + 0.5, color="#888888", alpha=0.14, lw=0)
        _make_logarithmic(axes)
        # From left to right as a recovery runs: steps count down.
        axes.set_xlim(recipe.start_step + 0.5, 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    bottom, top = left.get_ylim()[0], max(axes.get_ylim()[1] for axes in (left, right))
    top = max(top, _draw_step_limits(left, comparisons))
    # One scale on both sides, so that accumulated errors can be compared with single ones.
    for axes in (left, right):
        axes.set_ylim(bottom, top)
    return to_svg(figure, "Error of every step, for every engine")


def _draw_step_limits(axes: Any, comparisons: Sequence[Comparison]) -> float:
    """Draw the limit of each precision as a dashed line; return the height that shows them all."""
    limits = {
        check.limit.value: comparison.precision
        for comparison in comparisons
        for check in comparison.checks
        if check.subject == "every step alone"
    }
    for limit, precision in limits.items():
        axes.axhline(limit, color=INK, lw=1, ls=(0, (4, 3)), alpha=0.7)
        axes.annotate(
            f"limit for {precision}",
            (1.5, limit),
            ha="right",
            va="bottom",
            color=INK,
            fontsize=9,
            xytext=(0, 2),
            textcoords="offset points",
        )
    # Room above the highest line for its label.
    return max((4 * limit for limit in limits), default=0.0)


def blocks_plot(comparisons: Sequence[Comparison]) -> str:
    """Return the error at every place of the denoiser, in the worst step, as SVG.

    Args:
        comparisons: In the order of their colours. One or more have places, the others are left
            out.
    """
    figure, (axes,) = new_axes(1, "Place in the denoiser", "Relative L2 of the residual stream")
    drawn = [(i, one) for i, one in enumerate(comparisons) if one.figures.stages]
    for i, comparison in drawn:
        errors = [stage.difference.relative_l2 for stage in comparison.figures.stages]
        label = f"{legend_label(comparison.name)}, step {comparison.figures.stage_step}"
        axes.plot(
            range(len(errors)),
            _drawable(errors),
            color=COLOURS[i % len(COLOURS)],
            marker="o",
            ms=3,
            lw=1.5,
            label=label,
        )
    # The places of a block follow each other, and its label stands at the first one:
    # "block 1" for "block 1, attention" and "block 1, MLP".
    ticks: dict[str, int] = {}
    for at, stage in enumerate(drawn[0][1].figures.stages):
        ticks.setdefault(stage.place.rpartition(",")[0] or stage.place, at)
    *blocks, last = ticks
    labels = [*blocks[:: max(1, round(len(blocks) / 14))], last]
    axes.set_xticks(
        [ticks[label] for label in labels],
        labels,
        rotation=30,
        rotation_mode="anchor",
        ha="right",
        va="top",
    )
    _make_logarithmic(axes)
    return to_svg(figure, "Error through the denoiser, block by block")


def spread_plot(comparisons: Sequence[Comparison], reference: Sequence[Pixels]) -> str:
    """Return the distribution of differences as SVG: latents of all steps, and final pixels."""
    from matplotlib.ticker import MaxNLocator

    figure, (left, right) = new_axes(2, "", "Share of all values, %")
    left.set_title("Latents, all steps alone", loc="left")
    left.set_xlabel("Absolute difference of a value")
    right.set_title("Final images", loc="left")
    right.set_xlabel("Difference of a pixel value, in levels of 255")
    right.set_ylabel("Share of values with at least this, %")
    edges = np.logspace(-10, 1, 89)  # eight bins a decade
    for i, comparison in enumerate(comparisons):
        colour = COLOURS[i % len(COLOURS)]
        gaps = comparison.gaps[np.isfinite(comparison.gaps)]
        # Equal values have no place on a logarithmic axis: they count in its first bin.
        counts, _ = np.histogram(gaps.clip(edges[0], edges[-1]), edges)
        # Of all values: those that are not finite are in no bin, and are missing from the sum.
        shares = 100 * counts / comparison.gaps.size
        label = legend_label(comparison.name)
        left.stairs(shares, edges, color=colour, label=label, fill=True, alpha=0.25)
        left.stairs(shares, edges, color=colour, lw=1.4)
        levels = np.abs(np.stack(comparison.recovered).astype(int) - np.stack(list(reference)))
        shares_from = [
            100 * float((levels >= level).mean()) for level in range(min(int(levels.max()), 32) + 1)
        ]
        right.plot(
            range(len(shares_from)), _drawable(shares_from), color=colour, marker="o", ms=4, lw=1.5
        )
    left.set_xscale("log")
    left.set_xticks(
        [edges[0], 1e-8, 1e-6, 1e-4, 1e-2, 1],
        ["equal", *(f"$10^{{{exponent}}}$" for exponent in (-8, -6, -4, -2, 0))],
    )
    _make_logarithmic(right)
    right.set_ylim(top=200)
    # Images that do not differ have one point, at 0; the axis shows whole levels all the same.
    right.set_xlim(-0.3, max(1.3, right.get_xlim()[1]))
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=2))
    return to_svg(figure, "How differences are spread")


def _make_logarithmic(axes: Any) -> None:
    """Give an axis a logarithmic scale, even if nothing can be drawn on one."""
    # With nothing to draw, matplotlib's own limits include 0, which a logarithm does not have.
    if not any(np.isfinite(line.get_ydata()).any() for line in axes.lines):
        axes.set_ylim(1e-10, 1)
        axes.text(
            0.5,
            0.5,
            "every value is 0 or not finite",
            transform=axes.transAxes,
            ha="center",
            va="center",
            color=INK,
        )
    axes.set_yscale("log")


def _drawable(values: Sequence[float]) -> NDArray[np.float64]:
    """Return values for a logarithmic axis: 0 and non-finite values leave a gap."""
    array = np.asarray(values, np.float64)
    return np.where(np.isfinite(array) & (array > 0), array, np.nan)
