"""What results.py found: every accuracy as JSON, and its tables."""

from __future__ import annotations

import datetime
import json
import platform
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from examples.settings import DISTILLED, Point, Row
from examples.training_sets import TrainingSet, Treatment

PACKAGES = ("torch", "transformers", "onnxruntime", "numpy")


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The accuracy, in percent, of one network trained on one set of so many images."""

    training_set: TrainingSet
    images: int
    architecture: str
    accuracy: float


def results_document(
    *,
    dataset: str,
    protocol: str,
    distilled_with: str,
    rows: Sequence[Row],
    measured: Iterable[Measured],
    points: Sequence[Point],
    swept: Iterable[Measured],
) -> dict[str, Any]:
    """Return everything that was measured as JSON values.

    A run names its treatment by its place in `treatments`, as rows and points do.
    """
    used = [*(row.treatment for row in rows), *(point.treatment for point in points)]
    treatments = list(dict.fromkeys(used))
    place = {treatment: number for number, treatment in enumerate(treatments)}
    return {
        "dataset": dataset,
        "protocol": protocol,
        "distilled_with": distilled_with,
        "date": datetime.date.today().isoformat(),
        "machine": platform.machine(),
        "versions": {
            "python": platform.python_version(),
            **{package: version(package) for package in PACKAGES},
        },
        "treatments": [asdict(treatment) for treatment in treatments],
        "rows": [
            {"title": row.title, "source": row.source, "treatment": place[row.treatment]}
            for row in rows
        ],
        "test": [_run(one, place) for one in measured],
        "points": [
            {
                "axis": point.axis,
                "value": point.value,
                "series": point.series,
                "treatment": place[point.treatment],
            }
            for point in points
        ],
        "validation": [_run(one, place) for one in swept],
    }


def _run(one: Measured, place: dict[Treatment, int]) -> dict[str, Any]:
    return {
        "source": one.training_set.source,
        "per_class": one.training_set.per_class,
        "treatment": place[one.training_set.treatment],
        "seed": one.training_set.seed,
        "images": one.images,
        "architecture": one.architecture,
        # Enough digits for the deviations of the tables, which are computed from unrounded values.
        "accuracy": round(one.accuracy, 4),
    }


def write_json(document: dict[str, Any], path: Path) -> None:
    """Write the document, an item of a list to a line."""
    parts = []
    for key, value in document.items():
        if isinstance(value, list):
            items = ",".join(f"\n    {json.dumps(item)}" for item in value)
            parts.append(f"  {json.dumps(key)}: [{items}\n  ]")
        else:
            parts.append(f"  {json.dumps(key)}: {json.dumps(value)}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("{\n" + ",\n".join(parts) + "\n}\n")


def table(
    rows: Iterable[Row],
    measured: Sequence[Measured],
    method: str,
    per_class: int,
    architectures: Sequence[str],
    distilled_with: str,
) -> str:
    """Return the rows' test accuracies in percent as Markdown: mean ± deviation over seeds.

    The last column averages the architectures that the images were not distilled with.
    """
    lines = [
        f"| {per_class} per class | {' | '.join(architectures)} | others |",
        "|---" * (len(architectures) + 2) + "|",
    ]
    for row in rows:
        source = method if row.source == DISTILLED else row.source
        by_seed: dict[int, dict[str, float]] = {}
        for one in measured:
            found = one.training_set
            wanted = source, per_class, row.treatment
            if (found.source, found.per_class, found.treatment) == wanted:
                by_seed.setdefault(found.seed, {})[one.architecture] = one.accuracy
        others = [
            statistics.fmean(v for name, v in accuracies.items() if name != distilled_with)
            for accuracies in by_seed.values()
        ]
        columns = [[one[name] for one in by_seed.values()] for name in architectures]
        cells = " | ".join(mean_and_deviation(column) for column in (*columns, others))
        lines.append(f"| {row.title} | {cells} |")
    return "\n".join(lines)


def mean_and_deviation(values: Sequence[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.1f}{deviation}"
