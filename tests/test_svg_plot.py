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


def test_long_names_of_a_legend_are_wrapped_and_stay_in_the_picture() -> None:
    names = [f"{number}-{'w' * 100}" for number in range(5)]
    figure, (axes,) = new_axes(1, "", "")
    for name in names:
        axes.plot([0, 1], label=legend_label(name))
    to_svg(figure, "title")
    box = figure.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width
    assert axes.bbox.height > 100  # the axes keep their room
    texts = [text.get_text() for text in figure.legends[0].get_texts()]
    assert [text.replace("\n", "") for text in texts] == names
