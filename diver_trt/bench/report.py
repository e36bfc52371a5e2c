"""A benchmark as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from diver_trt.bench import words
from diver_trt.bench.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, plots_of
from diver_trt.bench.result import Result
from diver_trt.html_page import environment
from diver_trt.svg_plot import COLOURS

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(result: Result, facts: dict[str, Any]) -> str:
    """Return the report as one HTML page.

    Args:
        result: What was found.
        facts: The same as JSON values, which the page carries too.

    Raises:
        MissingExtraError: If Jinja is not installed.
    """
    page = environment()
    names = [contestant.name for contestant in result.plan.contestants]
    return str(
        page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            result=result,
            facts=facts,
            words=words,
            heading=list(words.heading(result)),
            plots=list(plots_of(result.rows, names)),
            colours={name: COLOURS[i % len(COLOURS)] for i, name in enumerate(names)},
            frame={
                "width": WIDTH,
                "height": HEIGHT,
                "left": LEFT,
                "right": WIDTH - RIGHT,
                "top": TOP,
                "bottom": HEIGHT - BOTTOM,
            },
            remarks=[
                line
                for row in result.rows
                for line in (*words.step_line(row), *words.phases_line(row))
            ],
        )
    )
