"""The rows of the results' table, and the settings that are swept on the validation set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from diver_trt import PRESETS, Recipe
from diver_trt.recipe import GUIDE_KINDS
from examples.training_sets import REAL, Treatment

DISTILLED = "distilled"
"""The source of a row that stands for every distilled set."""

EVERY_STEP = (50, 0)
PLAIN = Recipe(inherit_step=None, gamma=0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of the table: a source, `REAL` or `DISTILLED`, and what it goes through."""

    title: str
    source: str
    treatment: Treatment


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A point of the sweep: one value on an axis, other settings being equal.

    Attributes:
        axis: What is varied, and from which settings.
        value: The value on the axis, as the plot has it.
        series: The line of the plot it belongs to; empty if there is one.
        treatment: What distilled images go through.
    """

    axis: str
    value: float | str
    series: str = ""
    treatment: Treatment


def _row(title: str, recipe: Recipe, source: str = DISTILLED) -> Row:
    return Row(title=title, source=source, treatment=Treatment(recipe=recipe))


# The rows of the paper's ablation (its ImageFruit table), and what its reviewers asked for.
ROWS = (
    Row(title="random real", source=REAL, treatment=Treatment()),
    Row(title="distilled", source=DISTILLED, treatment=Treatment()),
    Row(title="distilled, through the VAE", source=DISTILLED, treatment=Treatment(vae=True)),
    # Plain sampling does not use the images; it is listed once, for every method.
    _row("plain sampling", PLAIN, REAL),
    _row("+ inheritance", Recipe(gamma=0.0)),
    _row("+ guidance", Recipe(inherit_step=None, window=EVERY_STEP)),
    _row("+ inheritance + guidance", Recipe(window=EVERY_STEP)),
    _row("+ window: DIVER, `paper`", PRESETS["paper"]),
    _row("DIVER, guide `noised`", Recipe(guide="noised")),
    _row("DIVER, guide `x0`", Recipe(guide="x0")),
    _row("DIVER, `matched`", PRESETS["matched"]),
    _row("DIVER, `level`", PRESETS["level"]),
    Row(
        title="DIVER, `level`, three copies",
        source=DISTILLED,
        treatment=Treatment(recipe=PRESETS["level"], copies=3),
    ),
    _row("random real + DIVER", PRESETS["paper"], REAL),
)


def matched(step: int, **settings: Any) -> Recipe:
    """Return a recipe that starts at the noise level it lifts the latent to, without guidance."""
    start = Recipe(inherit_step=step, start_step=step, gamma=0.0)
    return replace(start, **settings)


def sweep() -> Iterator[Point]:
    """Yield every point of the sweep, axis by axis."""
    for step in (25, 30, 35, 40, 45):
        yield _point("matched start, no guidance", step, matched(step))
    for step in (15, 25, 35, 45):
        yield _point(
            "inherit step, start 50, no guidance", step, Recipe(gamma=0.0, inherit_step=step)
        )
    for scale in (1.5, 2.0, 4.0):
        yield _point("guidance scale, matched start 40", scale, matched(40, cfg_scale=scale))
    for guide in GUIDE_KINDS:
        for gamma in (0.02, 0.1):
            yield _point("gamma, paper", gamma, Recipe(gamma=gamma, guide=guide), guide)
        for step in (25, 40):
            guided = matched(step, gamma=0.1, window=(step, step * 2 // 5), guide=guide)
            yield _point("matched start, guided", step, guided, guide)
        for window in (EVERY_STEP, (40, 25), (25, 0)):
            recipe = Recipe(window=window, guide=guide)
            yield _point("window, paper", f"{window[0]}:{window[1]}", recipe, guide)
    for copies in (1, 3):
        yield Point(
            axis="copies, matched start 40, no guidance",
            value=copies,
            treatment=Treatment(recipe=matched(40), copies=copies),
        )


def _point(axis: str, value: float | str, recipe: Recipe, series: str = "") -> Point:
    return Point(axis=axis, value=value, series=series, treatment=Treatment(recipe=recipe))
