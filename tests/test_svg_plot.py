"""Plots as SVG: their legends."""

from __future__ import annotations

import re

from diver_trt.svg_plot import legend_label, new_axes, to_svg


def test_a_legend_shows_every_name_as_it_is() -> None:
    names = ["a", "_a", "_", "a$b$c"]
    figure, (axes,) = new_axes(1, "", "")
    for name in names:
        axes.plot([0, 1], label=legend_label(name))
    shown = re.findall(r">([^<>]*)</text>", to_svg(figure, "title"))
    assert [text.strip() for text in shown[-len(names) :]] == names
