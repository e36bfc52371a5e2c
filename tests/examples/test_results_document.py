"""The results' JSON and tables hold what was measured, and averages are those of their rows."""

import json
import statistics
from pathlib import Path

from diver_trt import Recipe
from examples.results_document import Measured, results_document, table, write_json
from examples.settings import DISTILLED, Point, Row
from examples.training_sets import REAL, TrainingSet, Treatment

RECOVERED = Treatment(recipe=Recipe())
ROWS = (
    Row(title="random real", source=REAL, treatment=Treatment()),
    Row(title="distilled", source=DISTILLED, treatment=Treatment()),
    Row(title="recovered", source=DISTILLED, treatment=RECOVERED),
)
ARCHITECTURES = ("convnet-small", "mlp", "resnet-small")
SEEDS = (0, 1, 2)


def accuracy(source: str, treatment: Treatment, architecture: str, seed: int) -> float:
    return (
        10 * (1 + (source == REAL)) * (1 + (treatment == RECOVERED))
        + ARCHITECTURES.index(architecture)
        + seed * seed
    )


MEASURED = [
    Measured(
        training_set=TrainingSet(source=source, per_class=10, treatment=treatment, seed=seed),
        images=100,
        architecture=name,
        accuracy=accuracy(source, treatment, name, seed),
    )
    for source, treatment in ((REAL, Treatment()), ("dm", Treatment()), ("dm", RECOVERED))
    for seed in SEEDS
    for name in ARCHITECTURES
]


def test_a_table_has_the_mean_and_deviation_over_seeds_of_each_row() -> None:
    lines = table(ROWS, MEASURED, "dm", 10, ARCHITECTURES, "convnet-small").splitlines()
    assert lines[0] == "| 10 per class | convnet-small | mlp | resnet-small | others |"
    for row, line in zip(ROWS, lines[2:], strict=True):
        source = REAL if row.source == REAL else "dm"
        columns = [
            [accuracy(source, row.treatment, name, seed) for seed in SEEDS]
            for name in ARCHITECTURES
        ]
        others = [statistics.fmean(pair) for pair in zip(*columns[1:], strict=True)]
        cells = [
            f"{statistics.fmean(column):.1f} ± {statistics.stdev(column):.1f}"
            for column in (*columns, others)
        ]
        assert line == f"| {row.title} | {' | '.join(cells)} |"


def test_a_table_can_be_computed_from_the_json(tmp_path: Path) -> None:
    # Of 360 images; rounded to 0.01, their deviation is 6.849 in place of 6.851.
    accuracies = [100 * right / 360 for right in (281, 329, 324, 323, 280)]
    measured = [
        Measured(
            training_set=TrainingSet(source="dm", per_class=10, treatment=Treatment(), seed=seed),
            images=100,
            architecture=name,
            accuracy=accuracy,
        )
        for seed, accuracy in enumerate(accuracies)
        for name in ("convnet-small", "resnet-small")
    ]
    line = table(ROWS[1:2], measured, "dm", 10, ("resnet-small",), "convnet-small").splitlines()[2]
    document = results_document(
        dataset="digits",
        protocol="quick",
        distilled_with="convnet-small",
        rows=ROWS[1:2],
        measured=measured[1::2],
        points=[],
        swept=[],
    )
    stated = [run["accuracy"] for run in document["test"]]
    cell = f"{statistics.fmean(stated):.1f} ± {statistics.stdev(stated):.1f}"
    assert line == f"| distilled | {cell} | {cell} |" == "| distilled | 85.4 ± 6.9 | 85.4 ± 6.9 |"


def test_the_json_holds_every_run_with_its_treatment(tmp_path: Path) -> None:
    point = Point(axis="gamma", value=0.1, treatment=RECOVERED)
    document = results_document(
        dataset="digits",
        protocol="quick",
        distilled_with="convnet-small",
        rows=ROWS,
        measured=MEASURED,
        points=[point],
        swept=MEASURED[-1:],
    )
    write_json(document, tmp_path / "new" / "results.json")
    found = json.loads((tmp_path / "new" / "results.json").read_text())
    assert len(found["test"]) == len(MEASURED)
    for run, measured in zip(found["test"], MEASURED, strict=True):
        recipe = found["treatments"][run["treatment"]]["recipe"]
        expected = measured.training_set.treatment.recipe
        assert recipe == (expected and json.loads(json.dumps(expected.to_json())))
        assert run["accuracy"] == measured.accuracy
    assert [row["title"] for row in found["rows"]] == [row.title for row in ROWS]
    assert found["points"][0]["treatment"] == found["validation"][0]["treatment"]
