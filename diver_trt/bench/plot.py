"""Images per second over the batch size as inline SVG: measured lines, and the limit dashed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from diver_trt.bench.result import Row
from diver_trt.svg_plot import COLOURS

WIDTH, HEIGHT = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 34
"""Margins of a plot, which hold its axes' labels, in the SVG's units."""

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a plot.

    Attributes:
        points: Where it passes, in the SVG's units.
        colour: Its colour.
        dashed: Whether it is a limit.
    """

    points: tuple[Point, ...]
    colour: str
    dashed: bool

    @property
    def path(self) -> str:
        """The points as SVG's `polyline` takes them."""
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True, slots=True)
class Plot:
    """One subject's speed.

    Attributes:
        subject: A network's name, or `"recovery"`.
        lines: Its lines.
        batches: Place and label of each batch size on the horizontal axis.
        rates: Place and label of each power of ten on the vertical axis.
    """

    subject: str
    lines: tuple[Line, ...]
    batches: tuple[tuple[float, str], ...]
    rates: tuple[tuple[float, str], ...]


def plots_of(rows: Sequence[Row], contestants: Sequence[str]) -> Iterator[Plot]:
    """Yield a plot of each subject, both axes logarithmic.

    Args:
        rows: All rows of a benchmark.
        contestants: Names in the order of their colours.
    """
    for subject in dict.fromkeys(row.subject for row in rows):
        yield _plot(subject, [row for row in rows if row.subject == subject], contestants)


def _plot(subject: str, rows: Sequence[Row], contestants: Sequence[str]) -> Plot:
    names = list(dict.fromkeys(row.contestant for row in rows))
    colours = {name: COLOURS[contestants.index(name) % len(COLOURS)] for name in names}
    limits: dict[tuple[tuple[int, float], ...], str] = {}
    for name in names:
        own_rows = [row for row in rows if row.contestant == name]
        points = tuple((row.batch, row.images / row.limit.seconds) for row in own_rows if row.limit)
        # Engines on one processor mostly have the same limit.
        if points:
            limits.setdefault(points, colours[name])
    rates = [row.images_per_second for row in rows]
    rates += [rate for points in limits for _, rate in points]
    low, high = math.floor(math.log10(min(rates))), math.ceil(math.log10(max(rates)))
    # One power of ten at least: `place` divides by the difference.
    high = max(high, low + 1)
    batches = sorted({row.batch for row in rows})
    first, last = math.log2(batches[0]), math.log2(batches[-1])

    def place(batch: int, rate: float) -> Point:
        across = (math.log2(batch) - first) / (last - first) if last > first else 0.5
        up = (math.log10(rate) - low) / (high - low)
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    lines = [
        Line(
            tuple(place(*point) for point in points),
            colour if len(limits) > 1 else "currentColor",
            dashed=True,
        )
        for points, colour in limits.items()
    ]
    for name in names:
        own = tuple(
            place(row.batch, row.images_per_second) for row in rows if row.contestant == name
        )
        lines.append(Line(own, colours[name], dashed=False))
    return Plot(
        subject,
        tuple(lines),
        tuple((place(batch, 10**low)[0], f"{batch}") for batch in batches),
        tuple(
            (place(batches[0], 10**power)[1], f"{10.0**power:,g}") for power in range(low, high + 1)
        ),
    )
