"""Figures as the terminal and the report print them."""

from __future__ import annotations

import math

from diver_trt.comparison.checks import Check


def show_figure(figure: float) -> str:
    """Return a figure as text: `2.6e-04`, `0`, or `not finite`."""
    if not math.isfinite(figure):
        return "not finite"
    # Two digits where the order of magnitude matters; four where figures are read one by one.
    return (
        f"{figure:.1e}"
        if figure and (abs(figure) < 0.01 or abs(figure) >= 1000)
        else f"{figure:.4g}"
    )


def show_decibels(figure: float) -> str:
    """Return a PSNR in dB as text; equal images have an infinite one."""
    return "no difference" if math.isinf(figure) else f"{figure:.1f} dB"


def show_check(check: Check) -> str:
    """Return a check's figure as text, without the unit, which its measure names."""
    # Only limits on a PSNR are lower bounds.
    if check.limit.at_least:
        return show_decibels(check.figure).removesuffix(" dB")
    return show_figure(check.figure)


def show_where(check: Check) -> str:
    """Return where the figure of a check was found, or nothing if nothing differs."""
    equal = math.inf if check.limit.at_least else 0.0
    return "" if check.figure == equal else check.where
