"""Plots of a report, as inline SVG that follows the page's text colour."""

from __future__ import annotations

import io
import textwrap
from typing import Any

COLOURS = ("#3987d6", "#e08a1e", "#2ba37a", "#c765a6", "#8a7fe0", "#d4573b", "#8c8c3a", "#5aa9b5")
"""Mid tones that can be distinguished on white and on black."""

_LEGEND = 110
"""Characters of a row of a legend, of which the sample before a name takes six."""

_NAME = 80
"""Characters of a line of a name, few enough for wide letters."""

INK = "#123456"
"""Placeholder for the page's text colour: matplotlib does not accept `currentColor`."""


def new_axes(count: int, x_label: str, y_label: str) -> tuple[Any, list[Any]]:
    """Return a figure and its axes, side by side, in the page's colour."""
    from matplotlib import rc_context

    # Not pyplot, which keeps every figure in a global registry and chooses a window system.
    from matplotlib.figure import Figure

    inked = ["text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor"]
    inked += ["xtick.color", "ytick.color", "grid.color"]
    style = {
        **dict.fromkeys(inked, INK),
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "grid.alpha": 0.15,
        "axes.titlesize": 11,
    }
    with rc_context(style):
        figure = Figure(figsize=(10.4, 3.7), layout="constrained")
        axes = [figure.add_subplot(1, count, i + 1) for i in range(count)]
    for each in axes:
        each.set_xlabel(x_label)
        each.set_ylabel(y_label)
        each.patch.set_visible(False)
    return figure, axes


def legend_label(name: str) -> str:
    """Return a label that appears in a legend as the name, a long one on several lines."""
    # matplotlib leaves a label that begins with an underscore out of the legend, and reads text
    # between two dollar signs as a formula:
    # https://matplotlib.org/stable/api/legend_api.html
    # https://matplotlib.org/stable/users/explain/text/mathtext.html
    lines = textwrap.wrap(name, _NAME, replace_whitespace=False, drop_whitespace=False)
    return f"{' ' if name.startswith('_') else ''}{chr(10).join(lines)}".replace("$", r"\$")


def to_svg(figure: Any, title: str) -> str:
    """Return a figure as inline SVG in the page's text colour, with its legend below."""
    from matplotlib import rc_context

    handles, labels = figure.axes[0].get_legend_handles_labels()
    longest = max((len(line) for label in labels for line in label.split("\n")), default=0)
    columns = min(4, len(labels), max(1, _LEGEND // (longest + 6)))
    # Legends of many or long names get room of their own, or the axes would shrink away.
    lines = sum(label.count("\n") + 1 for label in labels) // max(1, columns)
    figure.set_figheight(figure.get_figheight() + 0.2 * max(0, lines - 3))
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        labelcolor=INK,
    )
    buffer = io.StringIO()
    # Text stays text, so that the page's font applies. A fixed salt makes the ids of clip paths,
    # and thus the page, the same in every run; titles differ, so two plots never share an id.
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        figure.savefig(
            buffer, format="svg", transparent=True, metadata={"Date": None, "Title": title}
        )
    text = buffer.getvalue()
    # An XML declaration is not allowed in the middle of an HTML page.
    return text[text.index("<svg") :].replace(INK, "currentColor")
