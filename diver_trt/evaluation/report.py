"""An evaluation as one self-contained HTML page."""

from __future__ import annotations

from pathlib import Path

from diver_trt import html_page
from diver_trt.evaluation import words
from diver_trt.evaluation.plot import accuracy_plot
from diver_trt.evaluation.result import Evaluation
from diver_trt.structs import dump

TEMPLATE = Path(__file__).with_name("report.html.jinja")


def render(evaluation: Evaluation) -> str:
    """Return the report as one HTML page, which carries the JSON too.

    Raises:
        MissingExtraError: If matplotlib or Jinja is not installed.
    """
    html_page.import_report_packages()
    page = html_page.environment()
    return str(
        page.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
            evaluation=evaluation,
            facts=dump(evaluation),
            words=words,
            heading=list(words.heading(evaluation)),
            notes=list(words.notes(evaluation)),
            plot=accuracy_plot(evaluation),
        )
    )
